"""Strategies select what they say, with as many weights as derived by hand; what cannot be read is pointed at."""

from functools import cache

import pytest
import timm
import torch

from partial_finetune.parts import anatomy
from partial_finetune.strategy import GRID8, PRESETS, StrategyError, select_parameters

VIT, SWIN, BEIT, CONV, POOL = (
    "vit_base_patch16_224",
    "swin_base_patch4_window7_224",
    "beit_base_patch16_224",
    "tf_efficientnet_lite0",
    "poolformer_s12",
)
HEAD = ("norm.weight", "norm.bias", "head.weight", "head.bias")


@cache
def sizes(model):
    with torch.device("meta"):
        return {name: value.numel() for name, value in timm.create_model(model).named_parameters()}


@cache
def parts_of(model):
    with torch.device("meta"):
        return anatomy(timm.create_model(model))


def names(expression, model=VIT, **options):
    """Return the tuned parameters without those of the ViT's head."""
    return set(select_parameters(expression, parts_of(model), **options).parameters) - set(HEAD)


def units(expression, model=VIT, **options):
    return select_parameters(expression, parts_of(model), **options).units


@pytest.mark.parametrize(
    ("strategy", "count"),
    [
        ("attn", 28_348_416),
        ("ffn", 56_669_184),
        ("first_half", 42_527_232),
        ("last_half", 42_527_232),
        ("attn_first", 14_174_208),
        ("attn_last", 14_174_208),
        ("ffn_first", 28_334_592),
        ("ffn_last", 28_334_592),
        ("full", 85_797_120),
        ("linear", 0),
        ("norm", 12 * 4 * 768),
        ("bitfit", 102_144),
        ("apla", 12 * 768 * 769),
        ("last_2", 14_175_744),
    ],
)
def test_presets_tune_as_many_backbone_weights_of_vit_b_as_derived_by_hand(strategy, count):
    assert sum(sizes(VIT)[name] for name in names(strategy)) == count


def test_the_grid_has_eight_strategies_and_does_not_include_full_fine_tuning():
    chosen = [frozenset(names(strategy)) for strategy in GRID8]
    assert len(set(chosen)) == 8
    assert all(each < names("full") for each in chosen)


@pytest.mark.parametrize("model", [VIT, SWIN, BEIT, CONV, POOL])
def test_full_is_everything(model):
    assert select_parameters("full", parts_of(model)).parameters == parts_of(model).parameters


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("attn[0:6]", "attn[:half]"),
        ("attn[-1]", "attn[11]"),
        ("attn[-half]", "attn[6]"),
        ("attn[0, 3, 5]", "attn[0] | attn[3] | attn[5]"),
        ("attn[0,-2:]", "attn[0] | attn[10] | attn[11]"),
        ("block[::-2]", "block[1::2]"),
        ("last_2", "block[10:]"),
        ("first_half", "block[0:6]"),
        ("apla[3]", "attn.proj[3]"),
        ("attn.proj | attn.qkv", "attn"),
        ("attn.qkv.weight", "attn.weight - attn.proj"),
        ("attn & block[2]", "attn[2]"),
        ("block - ffn - norm", "attn"),
        ("attn | ffn - ffn", "attn"),
        ("attn | ffn & ffn[0]", "attn | ffn[0]"),
        ("(attn | ffn) & block[0]", "attn[0] | ffn[0]"),
        ("block & ffn - ffn[0]", "ffn[1:]"),
        ("attn | ffn[0]+norm", "attn | ffn[0] | norm[0]"),
        ("(attn[1] | ffn[0])+norm", "attn[1] | ffn[0] | norm[:2]"),
        ("attn[0]+norm+bias", "attn[0] | norm[0] | bias[0]"),
        ("bitfit", "bias"),
        ("bias & ffn", "ffn.bias"),
        ("  attn[ 0 : 2 ]|( ffn )", "attn[:2] | ffn"),
        ("attn | linear", "attn | classifier"),
    ],
)
def test_these_expressions_are_equal(expression, same):
    assert names(expression) == names(same)
    assert units(expression) == units(same)


def test_components_are_compared_as_a_whole():
    assert names("attn.proj[0]") == {"blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"}
    assert names("ffn.fc1[0]") == {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.bias"}
    assert names("stem.cls_token") == {"cls_token"}
    assert names("stem.patch_embed.proj.bias") == {"patch_embed.proj.bias"}


def test_attn_proj_of_cait_is_not_its_talking_heads():
    chosen = select_parameters("attn.proj[0]", parts_of("cait_xxs24_224")).parameters
    assert [name for name in chosen if "proj" in name] == ["blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"]


def test_every_bias_is_a_bias_whatever_it_is_called():
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.v_bias", "blocks.0.attn.proj.bias"} == {
        name for name in names("attn.bias[0]", BEIT) if name.startswith("blocks")
    }
    assert "blocks.0.attn.relative_position_bias_table" not in names("bias", BEIT)
    assert "blocks.0.norm1.beta" in names("bias", "resmlp_12_224")


def test_names_and_units_are_in_the_order_of_the_model():
    chosen = select_parameters("head | ffn[1] | attn[0] | stem", parts_of(VIT))
    assert chosen.units == ("stem", "attn[0]", "ffn[1]", "final_norm", "classifier")
    assert list(chosen.parameters) == [name for name in sizes(VIT) if name in chosen.parameters]
    assert chosen.expression == "head | ffn[1] | attn[0] | stem"


@pytest.mark.parametrize(
    ("expression", "head"),
    [
        ("attn", HEAD),
        ("bias", HEAD),
        ("attn | head", HEAD),
        ("linear", HEAD[2:]),
        ("attn | classifier", HEAD[2:]),
        ("attn | final_norm", HEAD[:2]),
        ("bias - head", ()),
    ],
)
def test_the_head_is_tuned_too_unless_it_is_named(expression, head):
    chosen = select_parameters(expression, parts_of(VIT)).parameters
    assert tuple(name for name in chosen if name in HEAD) == head


def test_pretrained_layers_before_the_classifier_are_in_the_head_but_not_in_a_linear_probe():
    assert units("linear", CONV) == ("classifier",)
    assert units("depthwise[0]", CONV) == ("depthwise[0]", "neck", "final_norm", "classifier")


def test_blocks_are_numbered_over_the_whole_model_with_the_transitions_before_them():
    assert units("block[2]", SWIN)[:2] == ("down[2]", "norm[2]")
    assert units("last_2", SWIN)[:2] == ("down[22]", "norm[22]")
    assert units("down[4]", SWIN)[0] == "down[4]"
    assert units("first_half", SWIN)[-3:] == ("ffn[11]", "final_norm", "classifier")


def test_random_layers_are_as_many_in_every_group_and_drawn_from_the_seed():
    chosen = units("random_3")[:-2]
    assert sorted(name[:3] for name in chosen) == ["att"] * 3 + ["ffn"] * 3
    assert units("random_3", seed=0) == units("random_3", seed=0)
    assert len({units("random_3", seed=seed) for seed in range(20)}) > 15
    drawn = {name for seed in range(40) for name in units("random_3", seed=seed)}
    assert drawn >= {unit.name for unit in parts_of(VIT).layers}


def test_of_a_small_group_all_layers_are_drawn():
    per_group = [sum(unit.name in units("random_3", SWIN) for unit in group) for group in parts_of(SWIN).groups()]
    assert per_group == [2, 2, 2, 2, 3, 3, 2, 2]
    assert names("random_12") == names("attn | ffn")


def test_every_preset_is_documented_by_what_it_selects():
    for name, expression in PRESETS.items():
        if "_K" not in name:
            assert names(name) == names(expression)


@pytest.mark.parametrize(
    ("expression", "column", "problem"),
    [
        ("", 1, "found the end; allowed: stem, norm, attn"),
        ("atn", 1, "found 'atn'; allowed: stem, norm, attn, ffn, final_norm, classifier, block, head, bias, full"),
        ("attn | Ffn", 8, "found 'Ffn'"),
        ("attn |", 7, "found the end"),
        ("-attn", 1, "found '-'"),
        ("attn ffn", 6, "found 'ffn'; allowed: | & - for another set"),
        ("(attn", 6, r"found the end; allowed: '\)'"),
        ("attn)", 5, r"found '\)'"),
        ("attn $ ffn", 6, r"found '\$'"),
        ("attn\n& é", 8, "found 'é'"),
        ("attn[", 6, "found the end; allowed: a number, half, or a slice"),
        ("attn[0:6", 9, r"found the end; allowed: '\]'"),
        ("attn[0,]", 8, r"found '\]'; allowed: a number"),
        ("attn[1.5]", 7, r"found '\.'"),
        ("attn[-]", 7, "allowed: a number or half"),
        ("attn[::0]", 6, "step 0"),
        ("attn[0, 12]", 9, "no block 12; allowed: -12 to 11"),
        ("attn[12:]", 5, "no such block there; allowed: 0, 1, 2"),
        ("stem[0]", 5, "no such block there; allowed: no index"),
        ("attn.", 6, "found the end; allowed: a component"),
        ("attn.[0]", 6, r"found '\['; allowed: a component"),
        ("ffn | attn.qvk", 12, "no 'qvk' there; allowed: bias, proj, qkv, weight"),
        ("attn.pro", 6, "no 'pro' there"),
        ("attn.proj[0].bias", 13, r"found '\.'"),
        ("attn+foo", 6, "found 'foo'; allowed: norm, bias, scale"),
        ("attn+scale", 6, "the model has no 'scale'"),
        ("linear+norm", 8, r"\+norm adds nothing"),
        ("attn & ffn", 1, "selects nothing"),
        ("attn - attn", 1, "selects nothing"),
        ("ffn | expand", 7, "the model has no 'expand'; allowed: stem"),
        ("last_0", 1, "last_0 is out of range; allowed: last_1 to last_12"),
        ("last_13", 1, "last_13 is out of range"),
        ("ffn|random_13", 5, "random_13 is out of range; allowed: random_1 to random_12"),
        ("last_K", 1, "found 'last_K'"),
    ],
)
def test_an_expression_that_cannot_be_used_is_pointed_at(expression, column, problem):
    with pytest.raises(StrategyError, match=problem) as error:
        select_parameters(expression, parts_of(VIT))
    assert error.value.column == column
    assert str(error.value).startswith(f"strategy {expression!r}, column {column}: ")
    assert "; allowed: " in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_model_lacks_is_refused_within_a_preset_too():
    with pytest.raises(
        StrategyError, match=r"'ffn \| attn_first', column 7: attn_first is 'attn\[:half\]', which fails: "
    ):
        select_parameters("ffn | attn_first", parts_of(POOL))
    with pytest.raises(
        StrategyError, match="column 1: the model has no 'ffn'; allowed: stem, depthwise, norm, project"
    ):
        select_parameters("ffn", parts_of(CONV))
    with pytest.raises(StrategyError, match="no 'proj' there"):
        select_parameters("apla", parts_of("convnext_tiny"))
    with pytest.raises(StrategyError, match="no such block there; allowed: 2, 4, 22"):
        select_parameters("down[3]", parts_of(SWIN))
