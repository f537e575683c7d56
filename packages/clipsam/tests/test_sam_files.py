"""Every form of SAM's weights opens behind one name, and segments: tiny networks of the real classes."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipsam import sam_files
from clipsam.mmr import MMRConfig, refine
from clipsam.promptable import Prompts
from clipsam.sam import SamSegmenter, TransformersSegmenter
from clipsam.sam_files import open_segmenter


def photograph(height=60, width=90):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def tiny(monkeypatch, sam):
    """The published shapes are 16 channels wide here."""
    monkeypatch.setattr(sam_files, "KINDS", {16: "vit_b"})
    monkeypatch.setitem(sam_files.sam_model_registry, "vit_b", lambda: emptied(sam))


def emptied(sam):
    """A copy without its weights."""
    sam = copy.deepcopy(sam)
    for value in sam.state_dict().values():
        value.zero_()
    return sam


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", "-in-a-dict.pt"])
def test_a_file_of_segment_anything_gives_its_own_masks(tmp_path, tiny, sam, suffix):
    path, state = tmp_path / f"sam{suffix}", sam.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if "dict" in suffix else state, path)
    opened, known = open_segmenter(path, chunk=3), SamSegmenter(sam)
    prompts = Prompts(torch.tensor([[5.0, 5, 40, 50]]))
    found, expected = (one.decode(one.embed(photograph()), prompts) for one in (opened, known))
    assert opened.chunk == 3
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
VISION |= {"output_channels": 16, "mlp_dim": 32, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8}
PROMPT = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def tiny_transformers(kind):
    """One of transformers' four SAMs, small."""
    transformers = pytest.importorskip("transformers", reason="the extra [hf] is missing")
    if kind in ("sam", "sam_hq"):
        prefix = "Sam" if kind == "sam" else "SamHQ"
        prompts = PROMPT | {"image_embedding_size": 8}
        extra = {"vit_dim": 16} if kind == "sam_hq" else {}
        config = getattr(transformers, f"{prefix}Config")(
            vision_config=VISION, prompt_encoder_config=prompts, mask_decoder_config=DECODER | extra
        )
        return getattr(transformers, f"{prefix}Model")(config)
    if kind == "sam2":
        hiera = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "num_attention_heads": 1,
            "embed_dim_per_stage": [8, 16, 32, 64],
        }
        hiera |= {"blocks_per_stage": [1, 1, 1, 2], "num_attention_heads_per_stage": [1, 1, 2, 2]}
        hiera |= {"global_attention_blocks": [4], "window_size_per_stage": [4, 4, 4, 2]}
        neck = {"backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16}
        vision = {"backbone_config": hiera, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], **neck}
        config = transformers.Sam2Config(
            vision_config=vision,
            prompt_encoder_config=PROMPT | {"patch_size": 16},
            mask_decoder_config=DECODER,
        )
        return transformers.Sam2Model(config)
    vit = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit |= {"image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 56}
    vision = {"backbone_config": {"model_type": "sam3_vit_model", **vit}, "fpn_hidden_size": 16}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    config = transformers.Sam3TrackerConfig(
        vision_config={"model_type": "sam3_vision_model", **vision},
        prompt_encoder_config=PROMPT | {"image_size": 56, "patch_size": 14},
        mask_decoder_config=DECODER,
    )
    return transformers.Sam3TrackerModel(config)


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2", "sam3_tracker"])
def test_a_folder_of_transformers_segments_what_it_is_asked_for(tmp_path, kind):
    torch.manual_seed(0)
    network = tiny_transformers(kind).eval()
    with torch.no_grad():  # new weights are so small that prompts hardly matter
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(tmp_path / kind)
    segmenter = open_segmenter(tmp_path / kind)
    assert isinstance(segmenter, TransformersSegmenter) and segmenter.kind == kind
    assert segmenter.pads == (kind in ("sam", "sam_hq"))
    boxes = torch.tensor([[5.0, 5, 40, 40], [20, 10, 80, 30], [1, 1, 9, 9]])
    points = torch.tensor([[[10.0, 10]], [[30, 20]], [[4, 4]]])
    image = photograph(45, 90)
    embedding = segmenter.embed(image)
    logits, scores = segmenter.decode(embedding, Prompts(boxes, points, torch.tensor([[1], [-1], [1]])))
    alone, _ = segmenter.decode(embedding, Prompts(boxes[1:2], points[1:2], torch.tensor([[-1]])))
    assert logits.shape[:2] == scores.shape == (3, 3) and torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1:2], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)  # the prompt matters
    # the same as the network itself gives, prompts and pixels brought to its square by hand
    side = segmenter.side
    scale = side / 90 if segmenter.pads else torch.tensor([side / 90, side / 45] * 2)
    with torch.no_grad():
        theirs = network(pixel_values=segmenter.to_square(image), input_boxes=(boxes[None] * scale)).pred_masks[0]
    ours, _ = segmenter.decode(embedding, Prompts(boxes))
    rows = theirs.shape[-2] // 2 if segmenter.pads else theirs.shape[-2]
    torch.testing.assert_close(ours, theirs[..., :rows, :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sam2", "sam3_tracker"])
def test_a_segmenter_that_squashes_refines_a_map(tmp_path, kind):
    tiny_transformers(kind).save_pretrained(tmp_path)
    rough = np.zeros((60, 90), np.float32)
    rough[10:30, 20:50] = 0.9
    found = refine(photograph(), rough, open_segmenter(tmp_path), MMRConfig())
    assert found.boxes.tolist() == [[20, 10, 50, 30]] and found.masks.shape == (1, 60, 90)
    assert 0 <= found.anomaly_map.min() <= found.anomaly_map.max() <= 0.9 + 1e-6


@pytest.mark.parametrize("is_hq", [False, True])
def test_mobile_sam_and_sam_hq_open(tmp_path, monkeypatch, is_hq):
    """TinyViT's anatomy is fixed at 1024 pixels; here it is a few channels wide."""
    pytest.importorskip("segment_anything_hq", reason="the extra [hq] is missing")
    from segment_anything_hq import modeling

    def build():
        encoder = modeling.TinyViT(
            img_size=1024, in_chans=3, num_classes=1, embed_dims=[8, 8, 8, 320], depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1], window_sizes=[7, 7, 14, 7], mlp_ratio=1.0, drop_rate=0.0, drop_path_rate=0.0,
            use_checkpoint=False, mbconv_expand_ratio=1.0, local_conv_size=3, layer_lr_decay=0.8,
        )  # fmt: skip
        prompts = modeling.PromptEncoder(
            embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=4
        )
        transformer = modeling.TwoWayTransformer(depth=1, embedding_dim=256, mlp_dim=16, num_heads=2)
        own = {"vit_dim": 8} if is_hq else {}
        decoder = modeling.MaskDecoderHQ if is_hq else modeling.MaskDecoder
        return modeling.Sam(encoder, prompts, decoder(transformer_dim=256, transformer=transformer, **own)).eval()

    monkeypatch.setattr(sam_files, "registry_of_hq", lambda asked: {"vit_tiny": build} if asked == is_hq else {})
    torch.save(build().state_dict(), tmp_path / "mobile.pt")
    segmenter = open_segmenter(tmp_path / "mobile.pt")
    logits, scores = segmenter.decode(segmenter.embed(photograph()), Prompts(torch.tensor([[5.0, 5, 40, 50]])))
    assert logits.shape == (1, 1 if is_hq else 3, 171, 256) and scores.shape == logits.shape[:2]


def test_what_is_no_sam_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="is no folder of a SAM; allowed: a file of segment-anything") as error:
        open_segmenter(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(sam_files, "import_module", missing)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2"}))
    with pytest.raises(ImportError, match="Sam2Model needs: pip install transformers"):
        open_segmenter(tmp_path)
    path = tmp_path / "hq.pth"
    torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(1)}, path)
    with pytest.raises(ImportError, match="MobileSAM and SAM-HQ need: pip install segment-anything-hq timm"):
        open_segmenter(path)
