import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from partial_finetune.ema import TunedEma
from partial_finetune.frozen import freeze

LABELS = torch.tensor([0, 1, 2, 3])


def digest(model, names=None):
    state = {name: value for name, value in model.state_dict().items() if names is None or name in names}
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}


def tune(model, frozen, images, *, steps=3, optimizer=None, ema=None, autocast=False):
    optimizer = optimizer or torch.optim.AdamW(frozen.parameters(), lr=1e-2, weight_decay=0.5)
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(images), LABELS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update()
    return optimizer


@pytest.mark.parametrize("strategy", ["attn", "ffn[2:]", "linear", "norm", "bitfit", "attn.proj", "attn[1] | ffn[3]"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_what_is_frozen_keeps_its_bytes_and_what_is_tuned_changes(vit, images, strategy, autocast):
    before = digest(vit)
    frozen = freeze(vit, strategy)
    momentum = torch.optim.SGD(frozen.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    ema = TunedEma(frozen, 0.5)
    tune(vit, frozen, images, optimizer=momentum, ema=ema, autocast=autocast)
    tune(vit, frozen, images, autocast=autocast)
    ema.swap()
    changed = {name for name, value in digest(vit).items() if value != before[name]}
    assert changed == set(frozen.selection.parameters)


@pytest.mark.parametrize("strategy", ["depthwise", "project[3:5]", "linear", "norm[8:]"])
def test_frozen_batch_norms_keep_their_statistics_through_train_mode(conv, images, strategy):
    before = digest(conv)
    frozen = freeze(conv, strategy)
    tune(conv, frozen, images)
    changed = {name for name, value in digest(conv).items() if value != before[name]}
    tuned_norms = {name.rpartition(".")[0] for name in frozen.selection.parameters}
    for name in changed - set(frozen.selection.parameters):
        assert name.rpartition(".")[0] in tuned_norms, name  # statistics of a batch norm that is tuned
    assert set(frozen.selection.parameters) <= changed


def test_parameters_that_are_not_tuned_never_get_a_gradient(vit, images):
    F.cross_entropy(vit(images), LABELS).backward()
    frozen = freeze(vit, "attn")
    assert all(value.grad is None for value in vit.parameters())  # what was there before would pollute a clipped norm
    F.cross_entropy(vit(images), LABELS).backward()
    with_gradient = {name for name, value in vit.named_parameters() if value.grad is not None}
    assert with_gradient == set(frozen.selection.parameters)


@pytest.mark.parametrize(("strategy", "blocks"), [("attn[2:]", 2), ("last_half", 2), ("linear", 4), ("ffn[3]", 3)])
def test_the_frozen_prefix_runs_in_eval_mode_and_without_a_graph(make_vit, images, strategy, blocks):
    model = make_vit(drop_path_rate=0.5)
    frozen = freeze(model, strategy)
    outputs = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in model.blocks]
    model.train()
    model(images)
    assert [output.requires_grad for output in outputs] == [False] * blocks + [True] * (4 - blocks)
    assert [block.training for block in model.blocks] == [False] * blocks + [True] * (4 - blocks)
    assert not model.patch_embed.training
    assert "patch_embed" in frozen.prefix
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("strategy", ["bitfit", "stem", "full"])
def test_nothing_is_a_prefix_of_what_begins_at_the_stem(vit, strategy):
    assert freeze(vit, strategy).prefix == ()


def test_gradients_are_those_of_the_whole_graph(vit, images):
    F.cross_entropy(vit(images), LABELS).backward()
    expected = {name: value.grad.clone() for name, value in vit.named_parameters()}
    frozen = freeze(vit, "ffn[2:]")
    F.cross_entropy(vit(images), LABELS).backward()
    for name, value in frozen.named_parameters().items():
        assert torch.equal(value.grad, expected[name]), name


def test_undo_gives_back_flags_and_modes(vit, images):
    vit.cls_token.requires_grad_(False)
    vit.blocks[1].eval()
    wanted = {name: value.requires_grad for name, value in vit.named_parameters()}
    modes = {name: module.training for name, module in vit.named_modules()}
    with freeze(vit, "attn[3]") as frozen:
        tune(vit, frozen, images)
    assert {name: value.requires_grad for name, value in vit.named_parameters()} == wanted
    assert {name: module.training for name, module in vit.named_modules()} == modes
    assert vit.train().blocks[1].training  # nothing is pinned any more
    freeze(vit, "attn")


def test_an_error_while_training_undoes_the_freezing_too(vit):
    with pytest.raises(KeyboardInterrupt), freeze(vit, "attn"):
        raise KeyboardInterrupt
    assert all(value.requires_grad for value in vit.parameters())


def test_an_optimizer_with_other_parameters_is_refused(vit):
    frozen = freeze(vit, "attn[0]")
    frozen.check(torch.optim.SGD(frozen.parameters(), lr=1))
    with pytest.raises(ValueError, match=r"the optimizer holds .* frozen parameters, such as 'blocks.0.mlp"):
        frozen.check(torch.optim.SGD(vit.parameters(), lr=1))
    with pytest.raises(ValueError, match=r"the optimizer lacks .* tuned parameters, such as 'blocks.0.attn"):
        frozen.check(torch.optim.SGD([vit.head.weight], lr=1))
    with pytest.raises(ValueError, match="one of another model"):
        frozen.check(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1))


def test_a_model_that_is_frozen_already_or_wrapped_is_refused(vit):
    with pytest.raises(ValueError, match="OptimizedModule; allowed: freeze first, then wrap or compile"):
        freeze(torch.compile(vit), "attn")
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        freeze(DistributedDataParallel.__new__(DistributedDataParallel), "attn")
    freeze(vit, "attn")
    with pytest.raises(ValueError, match="frozen already"):
        freeze(vit, "ffn")


def test_a_compiled_model_gives_gradients_to_what_is_tuned_anew(make_vit, images):
    model = make_vit(depth=1)
    found = []
    for strategy in ("attn", "ffn"):
        with freeze(model, strategy) as frozen:
            F.cross_entropy(torch.compile(model, backend="aot_eager")(images), LABELS).backward()
            found.append({name for name, value in model.named_parameters() if value.grad is not None})
            assert found[-1] == set(frozen.selection.parameters)
    assert found[0] != found[1]


@pytest.mark.parametrize("strategy", ["last_half", "attn[1:]"])
def test_gradient_checkpointing_gives_the_same_gradients(vit, images, strategy):
    grads = []
    for checkpointing in (False, True):
        vit.set_grad_checkpointing(checkpointing)
        with freeze(vit, strategy) as frozen:
            vit.train()
            F.cross_entropy(vit(images), LABELS).backward()
            grads.append([value.grad.clone() for value in frozen.parameters()])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other)


def test_the_average_of_what_is_tuned_is_the_average_of_the_whole_model(vit, images):
    with freeze(vit, "attn") as frozen:
        ema = TunedEma(frozen, 0.9)
        whole = {name: value.clone() for name, value in vit.state_dict().items()}
        optimizer = torch.optim.AdamW(frozen.parameters(), lr=1e-2)
        for updates in range(4):
            tune(vit, frozen, images, steps=1, optimizer=optimizer, ema=ema)
            decay = min(0.9, (1 + updates) / (10 + updates))
            for name, value in vit.state_dict().items():
                whole[name].lerp_(value, 1 - decay)
        ema.swap()
        for name, value in vit.state_dict().items():
            torch.testing.assert_close(value, whole[name], msg=name)
        assert set(ema.averages) == set(frozen.selection.parameters)


def test_swapping_twice_changes_nothing(vit, images):
    with freeze(vit, "attn") as frozen:
        ema = TunedEma(frozen, 0.9)
        tune(vit, frozen, images, ema=ema)
        before = digest(vit)
        ema.swap()
        assert digest(vit) != before
        ema.swap()
        assert digest(vit) == before
