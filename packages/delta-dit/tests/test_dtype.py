"""``--dtype``: models keep the precision that they are stored in, the embedded ones are fp32, and both can be told."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler

from delta_dit.commands.cli import main
from delta_dit.commands.models import load_sampler, stored_dtype


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline as the hub has them, stored in bf16."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4, "norm_num_groups": 1}
    transformer = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=4)
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    folder = tmp_path_factory.mktemp("pipeline")
    DiTPipeline(transformer, vae, DPMSolverMultistepScheduler()).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("asked", "dtype"), [(None, torch.bfloat16), ("fp32", torch.float32)])
def test_a_pipeline_keeps_its_own_precision_unless_told(folder, asked, dtype):
    pipe = load_sampler(str(folder), dtype=asked).pipe
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (dtype, dtype)


def test_what_does_not_tell_is_float32(tmp_path):
    assert stored_dtype(tmp_path) == torch.float32


@pytest.mark.parametrize(("asked", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_the_embedded_model_is_fp32_unless_told(asked, dtype):
    assert load_sampler("demo", dtype=asked).pipe.transformer.dtype == dtype


def test_images_in_bf16_are_close_to_those_in_fp32(folder):
    images = {dtype: load_sampler(str(folder), dtype=dtype).draw(0, range(2), steps=2) for dtype in ("bf16", "fp32")}
    assert images["bf16"].dtype == torch.float32
    error = (images["bf16"] - images["fp32"]).abs().mean()
    assert 0 < error < 0.02


def test_generate_draws_in_the_precision_that_it_is_told(folder, tmp_path, capfd):
    arguments = ["generate", "--model", str(folder), "--count", "2", "--steps", "3", "--cpu", "--output-dir"]
    for dtype in ("bf16", "fp32"):
        assert main([*arguments, str(tmp_path / dtype), "--dtype", dtype]) == 0
        manifest = json.loads((tmp_path / dtype / "manifest.json").read_text())
        assert manifest["config"]["dtype"] == dtype
    assert main([*arguments, str(tmp_path / "fp64"), "--dtype", "fp64"]) == 2
    assert "fp64" in capfd.readouterr().err
