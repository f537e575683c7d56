"""Count what the full-scale recipes of the guides compute, and write docs/estimates.json: ``python docs/estimate.py``.

Nothing is run: models are built on the meta device, and operations counted by torch's counter and by the packages' own
tools (``partial_finetune.cost``, ``bdp_nas.ledger``, ``delta_dit.schedules``). Hours are operations ÷ an assumed
throughput, so that they are estimates; none was measured. It takes two minutes and needs no weights.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, PixArtTransformer2DModel
from segment_anything import sam_model_registry
from torch.utils.flop_counter import FlopCounterMode

from bdp_nas.ledger import flops_per_sample
from bdp_nas.schedule import KeepSchedule
from bdp_nas.searchers import get_searcher
from bdp_nas.spaces import get_space
from bdp_nas.spaces.space import Size
from clipsam.umci import UMCIHead
from delta_dit.schedules import generic
from partial_finetune.cost import saved_bytes, training_cost
from partial_finetune.frozen import freeze

FILE = Path(__file__).parent / "estimates.json"

# Assumed, not measured: about half of an A100's published fp32 peak (19.5 TFLOP/s), a third of its bf16 peak (312)
FP32, BF16 = 10e12, 100e12  # floating point operations per second
GB = 1e9
T5_WEIGHTS, T5_TOKENS = 4.76e9, 120  # PixArt's text encoder, T5 v1.1 XXL, by its published size, not counted here

Row = dict[str, Any]


def flops(model: Any, *inputs: Any, **options: Any) -> int:
    """Return the floating point operations of one forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs, **options)
    return counter.get_total_flops()


def parameters(model: Any) -> int:
    """Return how many weights a model has."""
    return sum(value.numel() for value in model.parameters())


def delta_dit_rows() -> Iterator[Row]:
    """Yield a row per diffusion model: seconds per image, uncached and at 1.6 times fewer block evaluations."""
    vae: Row = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    decoder = AutoencoderKL(**vae, layers_per_block=2, latent_channels=4)
    for name, pixels, steps, guided in (
        ("DiT-XL/2", 256, 20, True),
        ("DiT-XL/2", 512, 20, True),
        ("PixArt-α", 512, 20, True),
        ("PixArt-α", 1024, 20, True),
        ("PixArt-α LCM", 1024, 4, False),
    ):
        side, batch, draws_text = pixels // 8, 1 + guided, name != "DiT-XL/2"
        model = transformer(side, draws_text)
        step = flops(model, torch.empty(batch, 4, side, side), **conditions(batch, draws_text))
        rest = flops(decoder.decoder, torch.empty(1, 4, side, side)) + draws_text * batch * 2 * T5_WEIGHTS * T5_TOKENS
        target = 1.6 if steps > 4 else 1.12
        fewer = generic(steps, 28, target).mac_speedup()
        tokens = batch * (side // 2) ** 2
        weights = 4 * (parameters(model) + parameters(decoder) + draws_text * T5_WEIGHTS)
        yield {
            "model": f"{name}, {pixels} px",
            "steps": steps,
            "tflop": (steps * step + rest) / 1e12,
            "seconds": (steps * step + rest) / FP32,
            "speedup": fewer,
            "cached_seconds": (steps * step / fewer + rest) / FP32,
            "weights_gb": weights / GB,
            "delta_mb": 4 * tokens * model.config.num_attention_heads * model.config.attention_head_dim / 1e6,
        }


def transformer(side: int, draws_text: bool) -> Any:
    """Return DiT-XL/2 or PixArt-α for latents of so many pixels."""
    if draws_text:
        return PixArtTransformer2DModel(sample_size=side, caption_channels=4096, use_additional_conditions=False)
    shape: Row = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}
    return DiTTransformer2DModel(**shape, in_channels=4, out_channels=8, sample_size=side)


def conditions(batch: int, draws_text: bool) -> Row:
    """Return what the transformer is told beside the latents."""
    told: Row = {"timestep": torch.zeros(batch)}
    if draws_text:
        text = torch.empty(batch, 120, 4096)
        return told | {"encoder_hidden_states": text, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return told | {"class_labels": torch.zeros(batch, dtype=torch.long)}


def clipsam_rows() -> Iterator[Row]:
    """Yield a row per stage of ClipSAM at full scale: what an image costs, and so many of them."""
    tower: Any = open_clip.create_model("ViT-L-14-336-quickgelu", device="meta", force_image_size=518).visual
    sam = sam_model_registry["vit_h"]()
    head = UMCIHead(4, 1024, 768, hidden=256, pool_kernels=(3, 9), pool_stride=None)
    patches = [torch.empty(1, 1024, 37, 37)] * 4
    with FlopCounterMode(display=False) as counter:
        torch.stack([stage.sum() for stage in head(patches, torch.empty(2, 768))]).sum().backward()
    for what, per_image, images, weights in (
        ("features of VisA's 2,162 test images", flops(tower, torch.empty(1, 3, 518, 518)), 2162, tower),
        ("2,000 steps of UMCI on 8 images", counter.get_total_flops(), 16_000, head),
        ("CLIP on MVTec-AD's 1,725 test images", flops(tower, torch.empty(1, 3, 518, 518)), 1725, tower),
        ("SAM ViT-H on all 1,725 of them", flops(sam.image_encoder, torch.empty(1, 3, 1024, 1024)), 1725, sam),
    ):
        yield {
            "what": what,
            "tflop": per_image / 1e12,
            "minutes": images * per_image / FP32 / 60,
            "weights_gb": 4 * parameters(weights) / GB,
        }


def partial_finetune_rows() -> Iterator[Row]:
    """Yield a row per network and strategy: hours of 10 epochs in bf16, memory of batch 32."""
    for name in ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base"):
        model = timm.create_model(name, num_classes=100)
        for strategy in ("full", "attn", "ffn", "last_half", "attn_last", "linear"):
            cost = training_cost(model, strategy, (3, 224, 224))
            with freeze(model, strategy), saved_bytes(model) as saved:
                model.train()(torch.empty(1, 3, 224, 224))
            yield {
                "model": name,
                "strategy": strategy,
                "tuned_millions": cost.parameters / 1e6,
                "gflop": cost.flops / 1e9,
                "cifar_hours": 40_000 * 10 * cost.flops / BF16 / 3600,
                "imagenet_hours": 1_281_167 * 0.8 * 10 * cost.flops / BF16 / 3600,
                "state_gb": cost.state_bytes / GB,
                "activations_gb": 32 * saved.bytes / GB,
            }


def bdp_nas_rows() -> Iterator[Row]:
    """Yield a row per space and searcher: hours of a search without and with pruning, memory of a batch of 64."""
    for space, searcher, size, pixels, epochs in (
        ("nasbench201", "darts", Size(10, 16, 5), 32, 50),
        ("nasbench201", "beta-darts", Size(10, 16, 5), 32, 100),
        ("darts", "darts", Size(10, 16, 8), 32, 50),
        ("darts", "pc-darts", Size(10, 16, 8), 32, 50),
        ("mobilenet", "darts", Size(100, 32, 4), 64, 120),
    ):
        supernet = get_searcher(searcher)().supernet(get_space(space), size)
        forward = flops_per_sample(supernet, torch.empty(2, 3, pixels, pixels))
        with saved_bytes(supernet.train()) as saved:
            supernet(torch.empty(2, 3, pixels, pixels))
        # forward, and twice as much backward, of both levels' samples
        search, keep = 3 * forward * 45_000 * epochs, KeepSchedule(epochs).mean()
        yield {
            "space": space,
            "searcher": searcher,
            "pixels": pixels,
            "epochs": epochs,
            "gflop": forward / 1e9,
            "hours": search / FP32 / 3600,
            "pruned_hours": keep * search / FP32 / 3600,
            "activations_gb": 64 / 2 * saved.bytes / GB,
        }


def main() -> None:
    """Write the file."""
    packages: dict[str, Callable[[], Iterator[Row]]] = {
        "delta-dit": delta_dit_rows,
        "clipsam": clipsam_rows,
        "partial-finetune": partial_finetune_rows,
        "bdp-nas": bdp_nas_rows,
    }
    with torch.device("meta"):
        counted = {name: list(rows()) for name, rows in packages.items()}
    FILE.write_text(json.dumps(counted, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
