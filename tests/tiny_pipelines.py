"""Tiny pipelines of diffusers, of videos and with images as input, around random transformers whose blocks matter.

They have neither tokenizers nor text encoders: they are called with embeddings of a prompt.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    StableDiffusion3Img2ImgPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from tiny_diffusers import flux, sd3, shaken

BLOCKS = 4
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
LATENTS = {"in_channels": 4, "out_channels": 4}


def embeddings(*names_and_shapes: Any) -> dict[str, torch.Tensor]:
    """Return random embeddings, the same each time: name, shape, name, shape, …"""
    random = torch.Generator().manual_seed(0)
    pairs = zip(names_and_shapes[::2], names_and_shapes[1::2])
    return {name: torch.randn(shape, generator=random) for name, shape in pairs}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_transformer(blocks=BLOCKS, scale=0.15):
    size = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16}
    return shaken(WanTransformer3DModel(**size, **LATENTS, num_layers=blocks, rope_max_seq_len=16), scale)


def wan(two=False, vae=None):
    """Return Wan; of 2.2, whose second transformer takes over where less than 0.7 of a sample is noise."""
    second = {"transformer_2": wan_transformer(scale=0.2), "boundary_ratio": 0.7} if two else {}
    absent: Any = None
    pipe = WanPipeline(absent, absent, vae or absent, FlowMatchEulerDiscreteScheduler(), wan_transformer(), **second)
    text = embeddings("prompt_embeds", (1, 3, 8), "negative_prompt_embeds", (1, 3, 8))
    return quiet(pipe), text | {"height": 32, "width": 32, "num_frames": 5}


def wan_with_decoder():
    """Return Wan with a decoder, for frames."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return wan(vae=vae.eval())


def wan_2_2():
    return wan(two=True)


def ltx():
    size = {**HEADS, **LATENTS, "num_layers": BLOCKS, "cross_attention_dim": 16, "caption_channels": 8}
    absent: Any = None
    pipe = LTXPipeline(
        FlowMatchEulerDiscreteScheduler(), absent, absent, absent, shaken(LTXVideoTransformer3DModel(**size))
    )
    text = embeddings("prompt_embeds", (1, 3, 8), "negative_prompt_embeds", (1, 3, 8))
    text |= {name: torch.ones(1, 3) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return quiet(pipe), text | {"height": 64, "width": 64, "num_frames": 9}


def cogvideox():
    size = {**HEADS, **LATENTS, "num_layers": BLOCKS, "text_embed_dim": 8, "time_embed_dim": 8, "sample_width": 4}
    size |= {"sample_height": 4, "sample_frames": 5, "max_text_seq_length": 3}
    absent: Any = None
    transformer = shaken(CogVideoXTransformer3DModel(**size))
    pipe = CogVideoXPipeline(absent, absent, absent, transformer, CogVideoXDDIMScheduler())
    text = embeddings("prompt_embeds", (1, 3, 8), "negative_prompt_embeds", (1, 3, 8))
    return quiet(pipe), text | {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 3}


def hunyuan_video():
    size = {**HEADS, **LATENTS, "num_layers": 2, "num_single_layers": 2, "mlp_ratio": 1.0, "text_embed_dim": 8}
    size |= {"num_refiner_layers": 1, "rope_axes_dim": (2, 2, 4), "pooled_projection_dim": 8}
    absent: Any = None
    transformer = shaken(HunyuanVideoTransformer3DModel(**size))
    pipe = HunyuanVideoPipeline(absent, absent, transformer, absent, FlowMatchEulerDiscreteScheduler(), absent, absent)
    text = embeddings("prompt_embeds", (1, 3, 8), "pooled_prompt_embeds", (1, 8))
    text |= {"prompt_attention_mask": torch.ones(1, 3, dtype=torch.long)}
    return quiet(pipe), text | {"height": 32, "width": 32, "num_frames": 5}


def picture(size=16):
    """Return a picture to begin with."""
    values = torch.rand(size, size, 3, generator=torch.Generator().manual_seed(0))
    return Image.fromarray((values * 255).byte().numpy())


def autoencoder():
    torch.manual_seed(0)
    kept = {"shift_factor": 0.0, "scaling_factor": 1.0, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(latent_channels=4, block_out_channels=(4, 4), norm_num_groups=2, **kept, **DOWN_AND_UP).eval()


DOWN_AND_UP = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def sd3_from_image():
    """Return SD3's image-to-image, which begins late."""
    absent: Any = None
    texts = [absent] * 6
    pipe = StableDiffusion3Img2ImgPipeline(sd3(), FlowMatchEulerDiscreteScheduler(), autoencoder(), *texts)
    names = ("prompt_embeds", (1, 3, 12), "negative_prompt_embeds", (1, 3, 12))
    text = embeddings(*names, "pooled_prompt_embeds", (1, 10), "negative_pooled_prompt_embeds", (1, 10))
    return quiet(pipe), text | {"image": picture(), "strength": 0.6, "height": 16, "width": 16}


def flux_kontext():
    """Return FLUX Kontext, which takes a picture's tokens beside those of the sample."""
    absent: Any = None
    pipe = FluxKontextPipeline(FlowMatchEulerDiscreteScheduler(), autoencoder(), absent, absent, absent, absent, flux())
    text = embeddings("prompt_embeds", (1, 3, 12), "pooled_prompt_embeds", (1, 10))
    return quiet(pipe), text | {"image": picture(), "height": 16, "width": 16, "max_area": 256, "_auto_resize": False}
