import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)  # tests run beside each other on small machines
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def sampler():
    """A sampler of a tiny pipeline of pixels, guided."""
    from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler

    from delta_dit.commands.models import Sampler, open_gates
    from delta_dit.embedded.pixel import PixelDiTPipeline

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=3,
        out_channels=3,
        num_layers=4,
        sample_size=16,
        patch_size=4,
        num_embeds_ada_norm=5,
        norm_type="ada_norm_zero",
    ).eval()
    open_gates(model)
    pipe = PixelDiTPipeline(model, DPMSolverMultistepScheduler(prediction_type="sample", lambda_min_clipped=-5.1))
    pipe.set_progress_bar_config(disable=True)
    return Sampler("tiny", pipe, list(range(5)), "class_labels", guidance=1.5)
