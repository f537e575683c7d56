"""Every architecture is taken apart without a rest, and its units run in the order in which they are listed."""

import math
import re
from functools import cache

import pytest
import timm
import torch
from torch import nn

from partial_finetune.parts import KINDS, anatomy

# architecture → number of blocks, number of homogeneous groups
MODELS = {
    "vit_base_patch16_224": (12, 2),
    "vit_base_patch16_clip_224": (12, 2),
    "vit_base_patch16_siglip_224": (12, 2),
    "vit_small_patch14_reg4_dinov2": (12, 2),
    "vit_relpos_small_patch16_224": (12, 2),
    "vit_srelpos_small_patch16_224": (12, 2),
    "vit_small_patch16_dinov3": (12, 2),
    "naflexvit_base_patch16_gap": (12, 2),
    "deit_tiny_patch16_224": (12, 2),
    "deit_tiny_distilled_patch16_224": (12, 2),
    "deit3_small_patch16_224": (12, 2),
    "beit_base_patch16_224": (12, 2),
    "beitv2_base_patch16_224": (12, 2),
    "eva02_tiny_patch14_224": (12, 2),  # SwiGLU in one matrix
    "eva02_base_patch16_clip_224": (12, 2),  # SwiGLU in two
    "eva_large_patch14_196": (24, 2),
    "cait_xxs24_224": (26, 3),  # class attention has its own shapes, but the same MLP
    "xcit_nano_12_p16_224": (14, 3),
    "volo_d1_224": (20, 5),
    "convit_tiny": (12, 3),
    "pit_ti_224": (12, 6),
    "samvit_base_patch16_224": (12, 2),
    "swin_base_patch4_window7_224": (24, 8),
    "swinv2_tiny_window8_256": (12, 8),
    "swinv2_cr_tiny_ns_224": (12, 8),
    "davit_tiny": (12, 8),
    "focalnet_tiny_srf": (12, 8),
    "convnext_tiny": (18, 8),
    "convnextv2_atto": (12, 8),
    "inception_next_atto": (12, 8),
    "poolformer_s12": (12, 4),  # pooling has no weights
    "poolformerv2_s12": (12, 4),
    "caformer_s18": (18, 8),
    "convformer_s18": (18, 8),
    "mixer_s32_224": (8, 2),
    "resmlp_12_224": (12, 2),
    "levit_128s": (11, 8),
    "levit_conv_128s": (11, 8),
    "hiera_tiny_224": (12, 11),
    "mvitv2_tiny": (10, 11),
    "pvt_v2_b0": (8, 8),
    "twins_pcpvt_small": (16, 8),
    "twins_svt_small": (18, 12),
    "fastvit_t8": (10, 8),
    "fastvit_sa12": (12, 8),
    "efficientformer_l1": (15, 6),
    "tf_efficientnet_lite0": (16, 29),
    "efficientnet_b0": (16, 29),
    "tf_efficientnetv2_b0": (21, 24),
    "mobilenetv2_100": (17, 25),
    "mobilenetv3_small_100": (12, 26),
}


@cache
def build(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options).eval()


def tensors(model):
    return [name for name, _ in (*model.named_parameters(), *model.named_buffers())]


def rank(unit):
    """When a unit runs: before all blocks, just before its block, in it, or after all."""
    if unit.block is None:
        return -1 if unit.kind == "stem" else math.inf
    return unit.block - 0.5 if unit.kind == "down" else unit.block


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_is_in_exactly_one_unit(name):
    model = build(name)
    parts = anatomy(model)
    owned = [tensor for unit in parts.units for tensor in (*unit.parameters, *unit.buffers)]
    assert sorted(owned) == sorted(tensors(model))
    assert parts.parameters == tuple(name for name, _ in model.named_parameters())
    assert set(parts.kinds) <= set(KINDS)
    assert (len(parts.blocks), len(parts.groups())) == MODELS[name]
    for unit in parts.units:
        assert unit.shapes == tuple(tuple(model.get_parameter(each).shape) for each in unit.parameters)
        assert parts.unit(unit.name) is unit
        for tensor in (*unit.parameters, *unit.buffers):
            assert parts.owner(tensor) is unit
            inside = any(tensor.startswith(f"{module}.") for module in unit.modules)
            assert inside or tensor.count(".") == (0 if unit.block is None else parts.blocks[unit.block].count(".") + 1)


@pytest.mark.parametrize("name", MODELS)
def test_units_run_in_the_order_of_their_numbers(name):
    model = build(name)
    parts = anatomy(model)
    ranks = {
        path: rank(unit)
        for unit in parts.units
        for path in unit.modules
        if list(model.get_submodule(path).parameters())
    }
    ranks |= {path: number for number, path in enumerate(parts.blocks)}
    ran = run(model, ranks)
    assert [path for path in ran if path in parts.blocks] == list(parts.blocks)
    assert [ranks[path] for path in ran] == sorted(ranks[path] for path in ran)
    assert [rank(unit) for unit in parts.units] == sorted(map(rank, parts.units))
    assert set(ranks) - set(ran) <= {"rope", "shared_rel_pos"}  # called by other names than forward


def run(model, paths):
    """Return the paths in the order in which their modules run."""
    ran = []
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: ran.append(path)) for path in paths
    ]
    with torch.no_grad():
        model(torch.empty(1, *model.default_cfg["input_size"], device="meta"))
    for hook in hooks:
        hook.remove()
    return ran


def kind_of(model, tensor):
    return anatomy(model).owner(tensor).name


def test_vit_b_has_as_many_attention_and_mlp_weights_as_derived_by_hand():
    model = build("vit_base_patch16_224")
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    millions = {
        kind: sum(sizes[name] for unit in anatomy(model).units if unit.kind == kind for name in unit.parameters) / 1e6
        for kind in ("attn", "ffn")
    }
    assert millions == {"attn": pytest.approx(28.35, abs=0.005), "ffn": pytest.approx(56.67, abs=0.005)}
    assert [len(group) for group in anatomy(model).groups()] == [12, 12]


def test_groups_of_swin_b_are_its_stages_attentions_and_mlps():
    groups = anatomy(build("swin_base_patch4_window7_224")).groups()
    assert [(group[0].kind, len(group)) for group in groups] == [(k, n) for n in (2, 2, 18, 2) for k in ("attn", "ffn")]


@pytest.mark.parametrize(
    ("model", "tensor", "unit"),
    [
        ("swinv2_tiny_window8_256", "layers.0.blocks.1.attn.cpb_mlp.0.weight", "attn[1]"),
        ("swinv2_tiny_window8_256", "layers.0.blocks.1.attn_mask", "attn[1]"),
        ("swinv2_tiny_window8_256", "layers.1.downsample.reduction.weight", "down[2]"),
        ("vit_base_patch16_siglip_224", "attn_pool.mlp.fc1.weight", "neck"),
        ("vit_base_patch16_clip_224", "norm_pre.weight", "stem"),
        ("vit_base_patch16_clip_224", "norm.weight", "final_norm"),
        ("vit_small_patch14_reg4_dinov2", "reg_token", "stem"),
        ("vit_srelpos_small_patch16_224", "shared_rel_pos.mlp.fc1.weight", "stem"),
        ("deit_tiny_distilled_patch16_224", "head_dist.weight", "classifier"),
        ("beit_base_patch16_224", "blocks.2.attn.q_bias", "attn[2]"),
        ("beit_base_patch16_224", "blocks.2.attn.relative_position_bias_table", "attn[2]"),
        ("beit_base_patch16_224", "blocks.2.gamma_1", "scale[2]"),
        ("eva02_tiny_patch14_224", "blocks.3.attn.v_bias", "attn[3]"),
        ("cait_xxs24_224", "blocks_token_only.0.attn.q.weight", "attn[24]"),
        ("xcit_nano_12_p16_224", "pos_embed.token_projection.weight", "stem"),
        ("xcit_nano_12_p16_224", "blocks.0.local_mp.conv1.weight", "attn[0]"),
        ("volo_d1_224", "network.0.0.attn.attn.weight", "attn[0]"),
        ("volo_d1_224", "network.1.proj.weight", "down[4]"),
        ("volo_d1_224", "aux_head.weight", "classifier"),
        ("convnext_tiny", "stages.1.blocks.0.conv_dw.weight", "attn[3]"),
        ("convnext_tiny", "head.norm.weight", "final_norm"),
        ("caformer_s18", "head.fc.fc1.weight", "classifier"),
        ("mixer_s32_224", "blocks.0.mlp_tokens.fc1.weight", "attn[0]"),
        ("levit_128s", "stages.1.downsample.attn_downsample.q.ln.linear.weight", "attn[2]"),
        ("hiera_tiny_224", "blocks.1.proj.weight", "attn[1]"),
        ("pvt_v2_b0", "stages.0.norm.weight", "down[2]"),
        ("twins_svt_small", "patch_embeds.0.proj.weight", "stem"),
        ("twins_svt_small", "patch_embeds.1.proj.weight", "down[2]"),
        ("twins_svt_small", "pos_block.1.proj.0.weight", "down[3]"),
        ("tf_efficientnet_lite0", "blocks.0.0.conv_pw.weight", "project[0]"),
        ("tf_efficientnet_lite0", "blocks.1.0.conv_pw.weight", "expand[1]"),
        ("tf_efficientnet_lite0", "blocks.1.0.conv_dw.weight", "depthwise[1]"),
        ("tf_efficientnet_lite0", "blocks.1.0.bn2.running_mean", "norm[1]"),
        ("tf_efficientnet_lite0", "bn1.num_batches_tracked", "stem"),
        ("tf_efficientnet_lite0", "conv_head.weight", "neck"),
        ("tf_efficientnet_lite0", "bn2.weight", "final_norm"),
        ("efficientnet_b0", "blocks.1.0.se.conv_reduce.weight", "se[1]"),
    ],
)
def test_names_that_mislead_are_understood(model, tensor, unit):
    parts = anatomy(build(model))
    assert parts.owner(tensor if tensor in tensors(build(model)) else pytest.fail(f"no {tensor}")).name == unit


def test_a_shared_position_bias_of_the_whole_model_is_in_the_stem():
    model = build("beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    assert kind_of(model, "rel_pos_bias.relative_position_bias_table") == "stem"


def test_tied_parameters_count_once_under_their_first_name():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=2, depth=3)
    model.blocks[2].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    parts = anatomy(model)
    assert parts.owner("blocks.0.mlp.fc1.weight").name == "ffn[0]"
    assert "blocks.2.mlp.fc1.weight" not in parts.parameters
    assert [unit.name for unit in parts.groups()[1]] == ["ffn[0]", "ffn[1]"]


def test_components_below_a_unit_are_those_after_its_module():
    parts = anatomy(build("beit_base_patch16_224"))
    assert parts.unit("attn[0]").below("blocks.0.attn.qkv.weight") == ("qkv", "weight")
    assert parts.unit("scale[0]").below("blocks.0.gamma_1") == ("gamma_1",)
    assert parts.unit("stem").below("patch_embed.proj.weight") == ("patch_embed", "proj", "weight")


def test_a_model_without_classes_has_no_classifier():
    assert "classifier" not in anatomy(build("vit_base_patch16_224", num_classes=0)).kinds


@pytest.mark.parametrize(
    ("name", "left_over"),
    [
        ("vit_base_patch16_xp_224", "blocks.0.in_proj.weight"),  # attention and MLP fused into one matrix
        ("gmlp_ti16_224", "blocks.0.mlp_channels.fc1.weight"),  # mixes tokens inside of its MLP
        ("resnet18", "layer1.0.conv1.weight"),
        ("maxvit_pico_rw_256", "stages.0.blocks.0.conv.pre_norm.weight"),
        ("crossvit_tiny_240", "cls_token_0"),
    ],
)
def test_an_architecture_that_is_not_understood_is_refused_with_what_is_left_over(name, left_over):
    with pytest.raises(ValueError, match=f"is not understood, .*{re.escape(left_over)}.* left over") as error:
        anatomy(build(name))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)),
        nn.Linear(2, 2),
        nn.ReLU(),
        nn.TransformerEncoderLayer(8, 2),
        nn.Module(),
    ],
)
def test_a_foreign_model_is_refused(model):
    with pytest.raises(ValueError, match=f"model {type(model).__name__} is not understood"):
        anatomy(model)


def test_a_wrapped_model_is_refused():
    with pytest.raises(ValueError, match=r"Sequential is not understood, 0\.head\.weight, 0\.head\.bias left over"):
        anatomy(nn.Sequential(build("vit_base_patch16_224", class_token=False, pos_embed="none", global_pool="avg")))


def test_an_additional_layer_is_refused_by_name():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, num_heads=2, depth=2)
    model.blocks[1].adapter = nn.Linear(24, 24, bias=False)
    with pytest.raises(ValueError, match=r"VisionTransformer is not understood, blocks\.1\.adapter\.weight left over"):
        anatomy(model)


def test_unknown_names_are_refused():
    parts = anatomy(build("vit_base_patch16_224"))
    with pytest.raises(ValueError, match=r"no unit 'attn\[12\]'; allowed: stem, "):
        parts.unit("attn[12]")
    with pytest.raises(ValueError, match=r"no parameter or buffer 'fc\.weight'; allowed: its 152"):
        parts.owner("fc.weight")
