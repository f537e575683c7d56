"""The pipeline on a GPU finds what it finds on the CPU, also in half precision and compiled."""

import copy

import numpy as np
import pytest
import torch
from devices import DEVICE, distance, on_gpu

from clipsam import ClipSAM, SamSegmenter
from clipsam.umci import UMCIHead, rough_map


def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


@pytest.fixture
def pipelines(backbones, sam):
    """The same pipeline on the CPU and on the GPU."""
    torch.manual_seed(0)
    backbone = copy.deepcopy(backbones["own"])
    head = UMCIHead(len(backbone.stages), backbone.width, backbone.text_dim)
    here = ClipSAM(backbone, head, segmenter=SamSegmenter(copy.deepcopy(sam)))
    return here, copy.deepcopy(here).to(DEVICE)


@on_gpu
def test_maps_are_those_of_the_cpu(pipelines):
    (here,), (there,) = (pipeline.segment([picture()], "metal nut") for pipeline in pipelines)
    assert np.abs(here.rough_map - there.rough_map).max() < 1e-3
    assert abs(here.score - there.score) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@on_gpu
def test_half_precision_follows_single_precision(pipelines, dtype):
    _, pipeline = pipelines
    backbone, language = pipeline.backbone, pipeline.backbone.text("object", pipeline.bank)
    pixels = backbone.preprocess(picture())[None]
    single = rough_map(pipeline.umci(backbone.patches(pixels), language))
    with torch.autocast(torch.device(DEVICE).type, dtype):
        half = rough_map(pipeline.umci(backbone.patches(pixels), language))
    assert distance(half, single) < 0.05


@on_gpu
def test_a_compiled_head_gives_the_same_map(pipelines):
    _, pipeline = pipelines
    backbone, language = pipeline.backbone, pipeline.backbone.text("object", pipeline.bank)
    patches = backbone.patches(backbone.preprocess(picture())[None])
    assert (
        distance(
            rough_map(torch.compile(pipeline.umci)(patches, language)), rough_map(pipeline.umci(patches, language))
        )
        < 1e-3
    )
