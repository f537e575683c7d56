"""Tiny models with random weights, made of the real classes."""

import open_clip
import pytest
import timm
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from clipsam.backbone import Backbone


def build_sam(image_size=96, patch=8, width=16):
    """A SAM of segment_anything's classes with another input size and width than the published ones."""
    torch.manual_seed(0)
    grid = image_size // patch
    sam = Sam(
        ImageEncoderViT(img_size=image_size, patch_size=patch, embed_dim=16, depth=1, num_heads=2, out_chans=width),
        PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=4,
        ),
        MaskDecoder(transformer_dim=width, transformer=TwoWayTransformer(2, width, 2, 32)),
    )
    return sam.eval()


@pytest.fixture(scope="session")
def sam():
    return build_sam()


def tokenize(texts):
    """Letters as tokens, the end marked by the largest number, where open_clip's text tower reads its answer."""
    tokens = torch.zeros(len(texts), 80, dtype=torch.long)
    for row, text in zip(tokens, texts):
        letters = [1 + ord(letter) % 60 for letter in text[:79]]
        row[: len(letters) + 1] = torch.tensor([*letters, 63])
    return tokens


TEXT = {"context_length": 80, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def build_backbones():
    """A CLIP with open_clip's own ViT, and one with timm's, both of 4 blocks, 8-pixel patches and a 4×4 grid."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 12, "layers": 4}
    own = open_clip.CLIP(12, vision, TEXT)
    tower = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg", "timm_proj": "none", "image_size": 32}
    custom = open_clip.CustomTextCLIP(24, tower, TEXT)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 0}
    custom.visual.trunk = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **small)  # CLIP's config cannot
    return {
        "own": Backbone(own, tokenize, image_size=32, stages=(1, 3)),
        "timm": Backbone(custom, tokenize, image_size=32, stages=(1, 3)),
    }


@pytest.fixture(scope="session")
def backbones():
    return build_backbones()
