import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from partial_finetune.frozen import freeze
from partial_finetune.optimizer_groups import parameter_groups


def rates(model, strategy, **options):
    """Name of every tuned parameter → its learning rate and weight decay."""
    with freeze(model, strategy) as frozen:
        groups = parameter_groups(frozen, 1.0, **options)
        names = {id(value): name for name, value in model.named_parameters()}
        return {names[id(value)]: (group["lr"], group["weight_decay"]) for group in groups for value in group["params"]}


@pytest.mark.parametrize("strategy", ["full", "attn", "ffn[1:] | norm", "bitfit", "linear"])
def test_every_tuned_parameter_is_in_one_group(vit, strategy):
    with freeze(vit, strategy) as frozen:
        values = [value for group in parameter_groups(frozen, 1.0) for value in group["params"]]
        assert len(values) == len({id(value) for value in values})
        frozen.check(torch.optim.AdamW(parameter_groups(frozen, 1.0)))


def test_biases_norms_and_position_embeddings_do_not_decay(vit):
    found = rates(vit, "full", weight_decay=0.1)
    assert found["blocks.0.attn.qkv.weight"] == (1.0, 0.1)
    for name in ("blocks.0.attn.qkv.bias", "blocks.0.norm1.weight", "pos_embed", "cls_token", "head.bias"):
        assert found[name] == (1.0, 0.0), name


def test_layer_decay_counts_from_the_head_down_to_the_stem(vit):
    found = {name: rate for name, (rate, _) in rates(vit, "full", layer_decay=0.5).items()}
    assert found["head.weight"] == found["norm.weight"] == 1
    assert [found[f"blocks.{block}.mlp.fc1.weight"] for block in range(4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert found["cls_token"] == found["patch_embed.proj.weight"] == 0.5**5


@pytest.mark.parametrize("strategy", ["attn[1,3]", "last_half", "norm"])
def test_a_layers_rate_does_not_depend_on_what_else_is_frozen(vit, strategy):
    full = rates(vit, "full", layer_decay=0.7)
    for name, found in rates(vit, strategy, layer_decay=0.7).items():
        assert found == full[name], name


def test_torchs_schedulers_keep_the_layers_ratios(vit):
    with freeze(vit, "full") as frozen:
        optimizer = torch.optim.AdamW(parameter_groups(frozen, 1.0, layer_decay=0.5))
        before = [group["lr"] for group in optimizer.param_groups]
        schedule = CosineAnnealingLR(optimizer, 10)
        for _ in range(5):
            optimizer.step()
            schedule.step()
        after = [group["lr"] for group in optimizer.param_groups]
        torch.testing.assert_close([new / old for new, old in zip(after, before)], [after[0] / before[0]] * len(before))
        assert after[0] < before[0]


@pytest.mark.parametrize("layer_decay", [0, -1, 1.5])
def test_an_impossible_layer_decay_is_refused(vit, layer_decay):
    with freeze(vit, "attn") as frozen, pytest.raises(ValueError, match=f"layer_decay={layer_decay}"):
        parameter_groups(frozen, 1.0, layer_decay=layer_decay)
