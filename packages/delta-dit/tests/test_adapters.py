"""Every transformer in the table of adapters, at the smallest size its ``forward`` allows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import transformers as diffusers_transformers
from torch import nn

from delta_dit import Adapter, DeltaCacheConfig, DeltaPlan, Stack, delta_cache_stats, register_adapter
from delta_dit import disable_delta_cache as disable
from delta_dit import enable_delta_cache as enable
from delta_dit.adapters import ADAPTERS, adapter_for, blocks_of
from delta_dit.delta_plan import Range, Reuse

B = 2  # batch
STEPS = 4
TIMES = (900.0, 650.0, 400.0, 150.0)
NO_ADAPTER = {
    "DreamLiteTransformer2DModel": "a part of a U-Net",
    "MiniMaxMusic3RVQDepthDecoder": "autoregressive: no timestep",
    "RFD4ProteinaTransformer": "recycles: runs each block several times per call",
    "TransformerTemporalModel": "a part of a U-Net",
}


@dataclass(frozen=True)
class Tiny:
    """How to build one transformer and call it."""

    inputs: Callable[[Any], dict[str, Any]]  # model → arguments of forward but for the timestep
    time: Callable[[float], Any]  # training step in (0, 1000) → the timestep argument
    flex: str | None  # attribute of a block that holds flex attention
    config: dict[str, Any]


def times(t: float) -> torch.Tensor:
    return torch.full((B,), t)


def sigmas(t: float) -> torch.Tensor:
    return torch.full((B,), t / 1000)


def one_time(t: float) -> torch.Tensor:
    return torch.tensor([t])


def tiny(inputs: Callable, time: Callable = times, flex: str | None = None, /, **config: Any) -> Tiny:
    return Tiny(inputs, time, flex, config)


def r(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def image_and_text(_: Any, **more: Any) -> dict[str, Any]:
    return {"hidden_states": r(B, 4, 4, 4), "encoder_hidden_states": r(B, 3, 8), **more}


def video_and_text(_: Any, **more: Any) -> dict[str, Any]:
    return {"hidden_states": r(B, 4, 2, 4, 4), "encoder_hidden_states": r(B, 3, 8), **more}


def frames_and_text(_: Any, **more: Any) -> dict[str, Any]:
    return {"hidden_states": r(B, 2, 4, 4, 4), "encoder_hidden_states": r(B, 3, 8), **more}


def tokens_and_text(_: Any, **more: Any) -> dict[str, Any]:
    return {"hidden_states": r(B, 4, 4), "encoder_hidden_states": r(B, 3, 8), **more}


def flux(_: Any, axes: int = 3, **more: Any) -> dict[str, Any]:
    ids = {"img_ids": torch.arange(4.0 * axes).view(4, axes), "txt_ids": torch.zeros(3, axes)}
    return tokens_and_text(_, **ids, **more)


def cogview(_: Any, **more: Any) -> dict[str, Any]:
    return image_and_text(_, target_size=torch.full((B, 2), 4.0), crop_coords=torch.zeros(B, 2), **more)


def anyflow_far(_: Any) -> dict[str, Any]:
    cache = {i: {"full_cache": r(2, B, 2, 4, 12), "compressed_cache": r(2, B, 2, 1, 12)} for i in range(4)}
    return {
        "hidden_states": r(B, 1, 4, 4, 4),
        "encoder_hidden_states": r(B, 3, 8),
        "r_timestep": torch.zeros(B, 1),
        "chunk_partition": [1, 1],
        "kv_cache": cache,
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
    }


def cosmos3(_: Any) -> dict[str, Any]:
    return {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.arange(6).expand(3, 6),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [r(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": torch.arange(2, 6),
        "vision_mse_loss_indexes": torch.arange(2, 6),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def framepack(_: Any) -> dict[str, Any]:
    return video_and_text(
        _,
        encoder_attention_mask=ones(B, 3),
        pooled_projections=r(B, 8),
        image_embeds=r(B, 2, 4),
        indices_latents=torch.arange(2),
        latents_clean=r(B, 4, 1, 4, 4),
        indices_latents_clean=torch.zeros(1),
        latents_history_2x=r(B, 4, 2, 4, 4),
        indices_latents_history_2x=torch.arange(2),
        latents_history_4x=r(B, 4, 4, 8, 8),
        indices_latents_history_4x=torch.arange(4),
    )


def hunyuan_dit(_: Any) -> dict[str, Any]:
    angles = r(4, 8)
    return {
        "hidden_states": r(B, 4, 4, 4),
        "encoder_hidden_states": r(B, 2, 8),
        "text_embedding_mask": ones(B, 2),
        "encoder_hidden_states_t5": r(B, 2, 8),
        "text_embedding_mask_t5": ones(B, 2),
        "image_meta_size": torch.full((B, 6), 4.0),
        "style": torch.zeros(B, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def minimax_h3(_: Any) -> dict[str, Any]:
    return {
        "hidden_states": r(1, 4, 16),
        "audio_hidden_states": r(1, 2, 4),
        "encoder_hidden_states": r(1, 2, 8),
        "timestep_indices": torch.zeros(8, dtype=torch.long),
        "token_tags": torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]),
        "position_ids": torch.arange(24).view(8, 3),
        "video_indices": torch.arange(4),
        "audio_indices": torch.arange(4, 6),
        "text_indices": torch.arange(6, 8),
    }


def wan_animate_2(model: Any) -> dict[str, Any]:
    model.block_masks[2, 4] = None  # of flex attention
    return {
        "hidden_states": [r(4, 3, 4, 4)],
        "condition_latents": [r(4, 3, 4, 4)],
        "encoder_hidden_states": [r(3, 8)],
        "kv_cache": SimpleNamespace(get=lambda index: None),
        "kv_cache_mode": "cached",
        "seq_len": 12,
        "reference_grid_sizes": torch.tensor([[2, 2, 2]]),
        "origin_len": 5,
        "origin_area": [32, 32],
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
ONE = {**HEADS, "num_layers": 4}
LATENTS = {"in_channels": 4, "out_channels": 4}
COGVIDEO = {**LATENTS, "num_layers": 4, "text_embed_dim": 8, "time_embed_dim": 8, "sample_width": 4}
COGVIDEO |= {"sample_height": 4, "sample_frames": 5, "max_text_seq_length": 3}
COGVIEW = {**ONE, **LATENTS, "text_embed_dim": 8, "time_embed_dim": 8, "condition_dim": 4}
CROSS = {"num_cross_attention_heads": 2, "caption_channels": 8, "sample_size": 4}
FLUX = {**HEADS, "in_channels": 4, "num_layers": 3, "num_single_layers": 3, "joint_attention_dim": 8}
FLUX3D = {**FLUX, "axes_dims_rope": (2, 2, 4)}
FLUX4D = {**FLUX, "axes_dims_rope": (2, 2, 2, 2), "mlp_ratio": 1.0}
HUNYUAN = {**HEADS, **LATENTS, "num_layers": 3, "num_single_layers": 3, "mlp_ratio": 1.0, "text_embed_dim": 8}
HUNYUAN_VIDEO = {**HUNYUAN, "num_refiner_layers": 1, "rope_axes_dim": (2, 2, 4), "pooled_projection_dim": 8}
HUNYUAN_VIDEO |= {"guidance_embeds": False}
JOY = {"in_channels": 4, "hidden_size": 16, "num_attention_heads": 2, "text_dim": 8, "mlp_width_ratio": 1.0}
JOY |= {"num_layers": 4, "rope_dim_list": [2, 2, 4]}
KANDINSKY = {"model_dim": 16, "ff_dim": 16, "time_dim": 8, "num_visual_blocks": 4, "axes_dims": (4, 2, 2)}
KANDINSKY_TEXT = {**KANDINSKY, "in_text_dim": 8, "in_text_dim2": 8, "num_text_blocks": 1}
WAN_SIZE = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16}
WAN = {**WAN_SIZE, **LATENTS, "num_layers": 4, "rope_max_seq_len": 16}

TINY: dict[str, Tiny] = {
    "AceStepTransformer1DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 4, 4),
            "context_latents": r(B, 4, 4),
            "encoder_hidden_states": r(B, 3, 16),
            "timestep_r": torch.zeros(B),
        },
        sigmas,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        in_channels=8,
        audio_acoustic_hidden_dim=4,
    ),
    "AllegroTransformer3DModel": tiny(
        video_and_text, **ONE, cross_attention_dim=16, caption_channels=8, sample_height=4, sample_width=4
    ),
    "AnyFlowFARTransformer3DModel": tiny(
        anyflow_far, lambda t: torch.full((B, 1), t), "attn1", **WAN, chunk_partition=(1, 1)
    ),
    "AnyFlowTransformer3DModel": tiny(
        lambda _: frames_and_text(_, r_timestep=torch.zeros(B, 2)), lambda t: torch.full((B, 2), t), **WAN
    ),
    "AuraFlowTransformer2DModel": tiny(
        image_and_text,
        sigmas,
        **HEADS,
        sample_size=4,
        num_mmdit_layers=3,
        num_single_dit_layers=3,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ),
    "BriaFibo2Transformer2DModel": tiny(
        lambda _: {"hidden_states": r(B, 4, 4, 4), "encoder_hidden_states": r(B, 3, 3, 8)},
        sigmas,
        in_channels=4,
        dim=24,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=8,
        injection_layer_ids=(0, 2),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=8,
        axes_dims=(4, 4, 4),
        axes_lens=(16, 16, 16),
    ),
    "BriaFiboTransformer2DModel": tiny(
        lambda _: flux(_, text_encoder_layers=[r(B, 3, 4) for _ in range(6)]), **FLUX3D, text_encoder_dim=4
    ),
    "BriaTransformer2DModel": tiny(flux, **FLUX3D),
    "ChromaTransformer2DModel": tiny(
        flux, sigmas, **FLUX3D, approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1
    ),
    "ChronoEditTransformer3DModel": tiny(video_and_text, **WAN),
    "CogVideoXTransformer3DModel": tiny(frames_and_text, **HEADS, **COGVIDEO),
    "CogView3PlusTransformer2DModel": tiny(
        lambda _: cogview(_, original_size=torch.full((B, 2), 4.0)), **COGVIEW, pos_embed_max_size=4, sample_size=4
    ),
    "CogView4Transformer2DModel": tiny(
        lambda _: cogview(_, original_size=torch.full((B, 2), 4.0)), **COGVIEW, rope_axes_dim=(4, 4)
    ),
    "ConsisIDTransformer3DModel": tiny(
        lambda _: frames_and_text(_, id_cond=r(B, 4), id_vit_hidden=[r(B, 2, 8)]),
        **COGVIDEO,
        num_attention_heads=2,
        attention_head_dim=24,
        is_train_face=True,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=4,
        LFE_vit_dim=8,
        LFE_depth=1,
        LFE_dim_head=4,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=2,
        LFE_output_dim=32,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    ),
    "Cosmos3OmniTransformer": tiny(
        cosmos3,
        lambda t: torch.full((4,), t),
        head_dim=6,
        hidden_size=12,
        intermediate_size=12,
        latent_channel=2,
        latent_patch_size=1,
        num_attention_heads=2,
        num_hidden_layers=4,
        num_key_value_heads=1,
        patch_latent_dim=2,
        rope_axes_dim=[1, 1, 1],
        vocab_size=8,
    ),
    "CosmosTransformer3DModel": tiny(
        video_and_text,
        sigmas,
        **LATENTS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        mlp_ratio=1,
        text_embed_dim=8,
        adaln_lora_dim=4,
        max_size=(2, 8, 8),
        concat_padding_mask=False,
    ),
    "DiTTransformer2DModel": tiny(
        lambda _: {"hidden_states": r(B, 4, 4, 4), "class_labels": torch.tensor([1, 3])},
        **ONE,
        in_channels=4,
        sample_size=4,
        num_embeds_ada_norm=4,
    ),
    "EasyAnimateTransformer3DModel": tiny(
        video_and_text,
        **LATENTS,
        num_attention_heads=2,
        attention_head_dim=16,
        patch_size=2,
        num_layers=4,
        time_embed_dim=8,
        text_embed_dim=8,
    ),
    "ErnieImageTransformer2DModel": tiny(
        lambda _: {"hidden_states": r(B, 4, 2, 2), "text_bth": r(B, 3, 8), "text_lens": torch.tensor([3, 2])},
        **LATENTS,
        hidden_size=16,
        num_attention_heads=2,
        num_layers=4,
        ffn_hidden_size=16,
        text_in_dim=8,
        rope_axes_dim=(4, 2, 2),
    ),
    "Flux2Transformer2DModel": tiny(
        lambda _: flux(_, axes=4), sigmas, **FLUX4D, timestep_guidance_channels=8, guidance_embeds=False
    ),
    "Flux3Transformer2DModel": tiny(
        lambda _: flux(_, axes=4), sigmas, **FLUX4D, timestep_channels=8, cond_in_channels=4
    ),
    "FluxTransformer2DModel": tiny(
        lambda _: flux(_, pooled_projections=r(B, 8)), sigmas, **FLUX3D, pooled_projection_dim=8
    ),
    "GlmImageTransformer2DModel": tiny(
        lambda _: cogview(
            _, prior_token_id=torch.arange(4).expand(B, 4), prior_token_drop=torch.zeros(B, 4, dtype=torch.bool)
        ),
        **COGVIEW,
        prior_vq_quantizer_codebook_size=8,
    ),
    "HeliosTransformer3DModel": tiny(
        lambda _: video_and_text(
            _,
            indices_hidden_states=torch.arange(2, 4).expand(B, 2),
            latents_history_short=r(B, 4, 1, 4, 4),
            indices_latents_history_short=torch.zeros(B, 1),
        ),
        **WAN_SIZE,
        **LATENTS,
        num_layers=4,
        rope_dim=(4, 4, 4),
        guidance_cross_attn=False,
    ),
    "HiDreamImageTransformer2DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 4, 4, 4),
            "encoder_hidden_states_t5": r(B, 3, 8),
            "encoder_hidden_states_llama3": r(3, B, 2, 8),
            "pooled_embeds": r(B, 8),
        },
        **HEADS,
        **LATENTS,
        patch_size=2,
        num_layers=3,
        num_single_layers=3,
        caption_channels=[8, 8],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(2, 2, 4),
        max_resolution=(4, 4),
        llama_layers=[0, 1, 2, 0, 1, 2],
    ),
    "HunyuanDiT2DModel": tiny(
        hunyuan_dit,
        **HEADS,
        in_channels=4,
        patch_size=2,
        sample_size=4,
        hidden_size=16,
        num_layers=6,
        mlp_ratio=1.0,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=8,
        text_len=2,
        text_len_t5=2,
    ),
    "HunyuanImageTransformer2DModel": tiny(
        lambda _: image_and_text(_, encoder_attention_mask=ones(B, 3)),
        **HUNYUAN,
        num_refiner_layers=1,
        rope_axes_dim=(4, 4),
        patch_size=(2, 2),
    ),
    "HunyuanVideo15Transformer3DModel": tiny(
        lambda _: video_and_text(
            _,
            encoder_attention_mask=ones(B, 3),
            encoder_hidden_states_2=r(B, 2, 8),
            encoder_attention_mask_2=ones(B, 2),
            image_embeds=r(B, 2, 4),
        ),
        **ONE,
        **LATENTS,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        patch_size=2,
        text_embed_dim=8,
        text_embed_2_dim=8,
        image_embed_dim=4,
        rope_axes_dim=(2, 2, 4),
    ),
    "HunyuanVideoFramepackTransformer3DModel": tiny(
        framepack, **HUNYUAN_VIDEO, has_image_proj=True, image_proj_dim=4, has_clean_x_embedder=True
    ),
    "HunyuanVideoTransformer3DModel": tiny(
        lambda _: video_and_text(_, encoder_attention_mask=ones(B, 3), pooled_projections=r(B, 8)), **HUNYUAN_VIDEO
    ),
    "Ideogram4Transformer2DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 6, 4),
            "encoder_hidden_states": r(B, 6, 8),
            "position_ids": torch.arange(6).view(1, 6, 1).expand(B, 6, 3),
            "segment_ids": ones(B, 6),
            "indicator": torch.tensor([3, 3, 2, 2, 2, 2]).expand(B, 6),
        },
        sigmas,
        **ONE,
        in_channels=4,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=8,
        mrope_section=(2, 1, 1),
    ),
    "JoyImageEditPlusTransformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 4, 4, 1, 2, 2),
            "encoder_hidden_states": r(B, 3, 8),
            "shape_list": [[(1, 2, 2)]] * B,
        },
        **JOY,
    ),
    "JoyImageEditTransformer3DModel": tiny(video_and_text, **JOY),
    "Kandinsky5Transformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(1, 2, 4, 4, 4),
            "encoder_hidden_states": r(1, 3, 8),
            "pooled_projections": r(1, 8),
            "visual_rope_pos": [torch.arange(2)] * 3,
            "text_rope_pos": torch.arange(3),
        },
        one_time,
        **KANDINSKY_TEXT,
    ),
    "Kandinsky6SRTransformer3DModel": tiny(
        lambda _: {"hidden_states": r(1, 1, 8, 8, 9)},
        one_time,
        "self_attention",
        **KANDINSKY,
        in_visual_dim=4,
        out_visual_dim=4,
    ),
    "Kandinsky6Transformer3DModel": tiny(
        lambda _: frames_and_text(_, pooled_projections=r(B, 8), audio_hidden_states=r(B, 3, 4)),
        **KANDINSKY_TEXT,
        in_visual_dim=4,
        out_visual_dim=4,
        visual_cond=False,
        in_audio_dim=4,
        out_audio_dim=4,
    ),
    "Krea2Transformer2DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 4, 4),
            "encoder_hidden_states": r(B, 3, 2, 8),
            "position_ids": torch.arange(21).view(7, 3),
        },
        sigmas,
        **ONE,
        in_channels=4,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=8,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=8,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    ),
    "LTX2VideoTransformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 8, 4),
            "audio_hidden_states": r(B, 2, 4),
            "encoder_hidden_states": r(B, 3, 8),
            "audio_encoder_hidden_states": r(B, 3, 8),
            "num_frames": 2,
            "height": 2,
            "width": 2,
            "audio_num_frames": 2,
        },
        **ONE,
        **LATENTS,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        caption_channels=8,
    ),
    "LTXVideoTransformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 8, 4),
            "encoder_hidden_states": r(B, 3, 8),
            "encoder_attention_mask": ones(B, 3),
            "num_frames": 2,
            "height": 2,
            "width": 2,
        },
        **ONE,
        **LATENTS,
        cross_attention_dim=16,
        caption_channels=8,
    ),
    "LatteTransformer3DModel": tiny(
        video_and_text,
        **HEADS,
        in_channels=4,
        num_layers=3,
        patch_size=2,
        sample_size=4,
        cross_attention_dim=16,
        caption_channels=8,
        video_length=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    ),
    "LongCatAudioDiTTransformer": tiny(
        lambda _: tokens_and_text(_, encoder_attention_mask=ones(B, 3), latent_cond=r(B, 4, 4)),
        sigmas,
        dit_dim=16,
        dit_depth=4,
        dit_heads=2,
        dit_text_dim=8,
        latent_dim=4,
        ff_mult=1.0,
    ),
    "LongCatImageTransformer2DModel": tiny(flux, sigmas, **FLUX3D, pooled_projection_dim=8),
    "Lumina2Transformer2DModel": tiny(
        lambda _: image_and_text(_, encoder_attention_mask=ones(B, 3)),
        sigmas,
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=8,
    ),
    "LuminaNextDiT2DModel": tiny(
        lambda _: image_and_text(
            _,
            encoder_mask=ones(B, 3),
            image_rotary_emb=torch.polar(torch.ones(4, 4, 4), r(4, 4, 4)),
            cross_attention_kwargs={},
        ),
        sigmas,
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=4,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=8,
    ),
    "MiniMaxH3Transformer3DModel": tiny(
        minimax_h3,
        one_time,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=4,
        num_refiner_layers=1,
        ffn_dim=16,
        in_channels=4,
        audio_in_channels=4,
        text_dim=8,
        freq_dim=8,
        time_embed_hidden_dim=8,
        time_embed_dim=8,
        rope_freq_dim=2,
    ),
    "MiniMaxMusic3Transformer1DModel": tiny(
        lambda _: {"hidden_states": r(B, 4, 4), "encoder_hidden_states": r(B, 4, 8)},
        sigmas,
        **ONE,
        in_channels=4,
        condition_dim=8,
        ff_inner_dim=16,
        rotary_dim=4,
        fourier_embedding_dim=8,
    ),
    "MochiTransformer3DModel": tiny(
        lambda _: video_and_text(_, encoder_attention_mask=ones(B, 3).bool()),
        in_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        pooled_projection_dim=8,
        text_embed_dim=8,
        time_embed_dim=8,
        max_sequence_length=3,
    ),
    "MotifVideoTransformer3DModel": tiny(
        video_and_text,
        **HEADS,
        **LATENTS,
        num_layers=2,
        num_single_layers=4,
        num_decoder_layers=2,
        mlp_ratio=1.0,
        text_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
    ),
    "NucleusMoEImageTransformer2DModel": tiny(
        lambda _: tokens_and_text(_, img_shapes=[(1, 2, 2)] * B),
        sigmas,
        **ONE,
        in_channels=4,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
        mlp_ratio=12.0,
        num_experts=2,
        moe_intermediate_dim=8,
        capacity_factors=2.0,
        dense_moe_strategy="leave_first_block_dense",
    ),
    "OmniGenTransformer2DModel": tiny(
        lambda _: {
            "hidden_states": r(B, 4, 4, 4),
            "input_ids": torch.arange(3).expand(B, 3),
            "input_img_latents": [],
            "input_image_sizes": {},
            "attention_mask": torch.ones(B, 8, 8),
            "position_ids": torch.arange(8).expand(B, 8),
        },
        sigmas,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_layers=4,
        pad_token_id=0,
        vocab_size=8,
        max_position_embeddings=16,
        original_max_position_embeddings=8,
        pos_embed_max_size=4,
        time_step_dim=8,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
    ),
    "OvisImageTransformer2DModel": tiny(flux, sigmas, **FLUX3D, out_channels=4),
    "PRXTransformer2DModel": tiny(
        image_and_text,
        sigmas,
        in_channels=4,
        context_in_dim=8,
        hidden_size=16,
        mlp_ratio=1.0,
        num_heads=2,
        depth=4,
        axes_dim=[4, 4],
    ),
    "PixArtTransformer2DModel": tiny(
        image_and_text,
        **ONE,
        in_channels=4,
        cross_attention_dim=16,
        sample_size=4,
        caption_channels=8,
        use_additional_conditions=False,
    ),
    "PriorTransformer": tiny(
        lambda _: {"hidden_states": r(B, 8), "proj_embedding": r(B, 8), "encoder_hidden_states": r(B, 3, 8)},
        **ONE,
        embedding_dim=8,
        num_embeddings=3,
    ),
    "QwenImage21Transformer2DModel": tiny(
        lambda _: {
            "hidden_states": r(1, 4, 4),
            "encoder_hidden_states": r(1, 3, 8),
            "img_shapes": [[(1, 2, 2)]],
            "img_mask": torch.tensor([[False, False, False, True]]),
        },
        lambda t: one_time(t / 1000),
        **ONE,
        **LATENTS,
        context_in_dim=8,
        mlp_ratio=1,
        axes_dims_rope=(2, 2, 4),
    ),
    "QwenImageTransformer2DModel": tiny(
        lambda _: tokens_and_text(_, encoder_hidden_states_mask=ones(B, 3), img_shapes=[[(1, 2, 2)]] * B),
        sigmas,
        **ONE,
        in_channels=4,
        out_channels=1,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
    ),
    "SD3Transformer2DModel": tiny(
        lambda _: image_and_text(_, pooled_projections=r(B, 8)),
        **ONE,
        **LATENTS,
        sample_size=4,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=4,
        dual_attention_layers=(0, 1),  # as SD3.5 medium
        qk_norm="rms_norm",
    ),
    "SanaTransformer2DModel": tiny(
        image_and_text, **ONE, **LATENTS, **CROSS, cross_attention_head_dim=8, cross_attention_dim=16
    ),
    "SanaVideoTransformer3DModel": tiny(
        video_and_text,
        **LATENTS,
        **CROSS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        rope_max_seq_len=16,
    ),
    "SanaWMLTX2RefinerTransformer3DModel": tiny(
        lambda model: {
            "hidden_states": r(B, 8, 4),
            "encoder_hidden_states": r(B, 3, 8),
            "video_rotary_emb": model.build_rotary_emb_for_absolute_positions(B, [0, 1], 2, 2, "cpu", 24.0),
        },
        lambda t: torch.full((B, 8), t),
        **ONE,
        **LATENTS,
        cross_attention_dim=16,
        caption_channels=8,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
    ),
    "SanaWMTransformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(1, 4, 2, 4, 4),
            "encoder_hidden_states": r(1, 1, 3, 8),
            "encoder_attention_mask": ones(1, 3),
        },
        lambda t: torch.full((1, 1, 2), t),
        in_channels=4,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        caption_channels=8,
        mlp_ratio=2.0,
        chunk_plucker_channels=8,
        chunk_plucker_post_attn_blocks=4,
    ),
    "SkyReelsV2Transformer3DModel": tiny(video_and_text, **WAN),
    "StableAudio3DiTModel": tiny(
        lambda _: tokens_and_text(_, global_hidden_states=r(B, 8)),
        sigmas,
        io_channels=4,
        embed_dim=16,
        depth=4,
        num_heads=2,
        cond_token_dim=8,
        global_cond_dim=8,
        local_add_cond_dim=4,
        timestep_features_dim=8,
        ff_mult=1.0,
        num_memory_tokens=2,
    ),
    "StableAudioDiTModel": tiny(
        lambda _: tokens_and_text(_, global_hidden_states=r(B, 1, 8), rotary_embedding=(r(5, 4), r(5, 4))),
        sigmas,
        **ONE,
        **LATENTS,
        sample_size=4,
        num_key_value_attention_heads=1,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=8,
    ),
    "T5FilmDecoder": tiny(
        lambda _: {"encodings_and_masks": [(r(B, 3, 16), torch.ones(B, 3))], "decoder_input_tokens": r(B, 4, 4)},
        sigmas,
        input_dims=4,
        targets_length=4,
        d_model=16,
        num_layers=4,
        num_heads=2,
        d_kv=8,
        d_ff=16,
    ),
    "Transformer2DModel": tiny(
        lambda _: {"hidden_states": r(B, 4, 4, 4), "class_labels": torch.tensor([1, 3])},
        **ONE,
        in_channels=4,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=4,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ),
    "WanAnimate2Transformer3DModel": tiny(
        wan_animate_2,
        one_time,
        "self_attn",
        text_len=3,
        in_dim=8,
        out_dim=4,
        dim=16,
        ffn_dim=16,
        freq_dim=8,
        text_dim=8,
        num_heads=2,
        num_layers=4,
        use_img_emb=False,
    ),
    "WanAnimateTransformer3DModel": tiny(
        lambda _: {
            "hidden_states": r(1, 12, 3, 4, 4),
            "encoder_hidden_states": r(1, 3, 8),
            "encoder_hidden_states_image": r(1, 2, 4),
            "pose_hidden_states": r(1, 4, 2, 4, 4),
            "face_pixel_values": r(1, 3, 5, 4, 4),
        },
        one_time,
        **WAN_SIZE,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        num_layers=4,
        rope_max_seq_len=16,
        image_dim=4,
        motion_encoder_size=4,
        motion_encoder_channel_sizes={"4": 4},
        motion_style_dim=8,
        motion_dim=2,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    ),
    "WanTransformer3DModel": tiny(video_and_text, **WAN),
    "WanVACETransformer3DModel": tiny(
        lambda _: video_and_text(_, control_hidden_states=r(B, 4, 2, 4, 4)),
        **WAN,
        vace_layers=[0, 2],
        vace_in_channels=4,
    ),
    "ZImageTransformer2DModel": tiny(
        lambda _: {"x": [r(4, 1, 4, 4) for _ in range(B)], "cap_feats": [r(3, 8) for _ in range(B)]},
        sigmas,
        in_channels=4,
        dim=16,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 16, 16],
    ),
}


class DenseAttention(nn.Module):
    """Stands in for flex attention, which has to be compiled: each token sees those before it."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states.cumsum(dim=1)


def class_of(name: str) -> type[nn.Module]:
    found = getattr(diffusers, name, None) or getattr(diffusers_transformers, name, None)
    if found is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return found


def build(name: str) -> nn.Module:
    """Build a model whose blocks matter: as they are initialised, many gates are closed."""
    torch.manual_seed(0)
    model = class_of(name)(**TINY[name].config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.5 if parameter.ndim < 2 else parameter.shape[1:].numel() ** -0.5)
    if TINY[name].flex is not None:
        for block in blocks_of(model):
            setattr(block.module, TINY[name].flex, DenseAttention())
    return model


class Pipeline:
    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        self.transformer = transformer
        self.scheduler = scheduler


class Run:
    """Calls a model at ``STEPS`` timesteps with inputs that differ from step to step, or with the very same ones."""

    def __init__(self, name: str) -> None:
        self.model = build(name)
        self.blocks = [block.module for block in blocks_of(self.model)]
        self.time = TINY[name].time
        self.timestep = adapter_for(self.model).timestep
        self.inputs = [TINY[name].inputs(self.model) for _ in range(STEPS)]

    def call(self, step: int, t: float) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(tensors(self.model(**self.inputs[step], **{self.timestep: self.time(t)})))

    def run(self) -> list[list[torch.Tensor]]:
        return [self.call(step, t) for step, t in enumerate(TIMES)]

    def ranges(self) -> dict[str, Range]:
        """Return ranges that, where a model has two stacks, span both."""
        length = len(self.blocks)
        half = length // 2 + 1
        return {"front": (0, half), "rear": (length - half, length), "middle": (1, length - 1), "all": (0, length)}


def tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for item in output:
            yield from tensors(item)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other))


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other))


def plan_of(blocks: int, reused: Range) -> DeltaPlan:
    return DeltaPlan.of(blocks, [None, Reuse(*reused), Reuse(*reused), None])


@pytest.fixture(scope="module", params=sorted(TINY))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def log_calls(monkeypatch: pytest.MonkeyPatch, blocks: list[nn.Module]) -> list[int]:
    """Return a list that grows by a block's number whenever its own forward is called."""
    calls: list[int] = []

    def logged(index: int, forward: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(index)
            return forward(*args, **kwargs)

        return call

    for index, block in enumerate(blocks):
        monkeypatch.setattr(block, "forward", logged(index, block.forward), raising=False)
    return calls


def test_without_reuse_nothing_changes_and_disabling_leaves_no_trace(run: Run) -> None:
    plain = run.run()
    assert all(bool(torch.isfinite(tensor).all()) for output in plain for tensor in output)
    enable(run.model, DeltaCacheConfig(schedule="rear", interval=1, cached_blocks=1, num_inference_steps=STEPS))
    cached = run.run()
    disable(run.model)
    assert all(same(a, b) for a, b in zip(cached, plain))
    for module in run.model.modules():
        assert module.forward == type(module).forward.__get__(module)
        assert not getattr(module, "_diffusers_hook", None) or not module._diffusers_hook.hooks
    assert all(same(a, b) for a, b in zip(run.run(), plain))


def test_the_blocks_run_that_the_plan_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run.run()
    every = list(range(len(run.blocks)))
    calls = log_calls(monkeypatch, run.blocks)
    for name, (start, stop) in run.ranges().items():
        plan = plan_of(len(run.blocks), (start, stop))
        calls.clear()
        enable(run.model, DeltaCacheConfig(plan=plan, num_inference_steps=STEPS))
        cached = run.run()
        stats = delta_cache_stats(run.model)
        disable(run.model)
        outside = every[:start] + every[stop:]
        assert calls == [*every, *outside, *outside, *every], name
        assert len(calls) == plan.blocks_run() == stats.blocks_run, name
        assert not stats.fallbacks, name
        assert same(cached[0], plain[0]) and same(cached[3], plain[3]), f"{name}: a full step is exact"
        assert distance(cached[1], plain[1]) > 1e-3, f"{name}: the blocks and what they see must matter"


def test_reuse_is_exact_where_nothing_changed(run: Run) -> None:
    full = run.call(0, TIMES[0])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = Pipeline(run.model, scheduler)
    for name, reused in run.ranges().items():
        enable(pipeline, DeltaCacheConfig(plan=plan_of(len(run.blocks), reused)))
        scheduler.set_timesteps(STEPS)
        for step in range(3):
            scheduler._step_index = step
            assert distance(run.call(0, TIMES[0]), full) < 1e-5, (name, step)
        assert delta_cache_stats(pipeline).reuse_calls == 2, name
        disable(pipeline)


def tokens(count: int = 4) -> torch.Tensor:
    return r(B, count, 16)


# what ControlNets add between blocks; Chroma and Bria write it into the output of the block before
RESIDUALS: dict[str, Callable[[], dict[str, Any]]] = {
    "BriaTransformer2DModel": lambda: {"controlnet_single_block_samples": [tokens(1) for _ in range(3)]},
    "ChromaTransformer2DModel": lambda: {"controlnet_single_block_samples": [tokens() for _ in range(3)]},
    "FluxTransformer2DModel": lambda: {
        "controlnet_block_samples": [tokens() for _ in range(2)],
        "controlnet_single_block_samples": [tokens() for _ in range(3)],
    },
    "QwenImageTransformer2DModel": lambda: {"controlnet_block_samples": [tokens() for _ in range(2)]},
    "SD3Transformer2DModel": lambda: {"block_controlnet_hidden_states": [tokens() for _ in range(2)]},
    "SanaTransformer2DModel": lambda: {"controlnet_block_samples": [r(B, 16, 16) for _ in range(2)]},
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals_between_blocks_are_not_counted_twice(name: str) -> None:
    run = Run(name)
    without = run.call(0, TIMES[0])
    run.inputs[0] |= RESIDUALS[name]()
    full = run.call(0, TIMES[0])
    assert distance(without, full) > 1e-2
    pipeline = Pipeline(run.model, diffusers.FlowMatchEulerDiscreteScheduler())
    for reused in run.ranges().values():
        enable(pipeline, DeltaCacheConfig(plan=plan_of(len(run.blocks), reused)))
        pipeline.scheduler.set_timesteps(STEPS)
        for step in range(3):
            pipeline.scheduler._step_index = step
            assert distance(run.call(0, TIMES[0]), full) < 1e-5
        assert delta_cache_stats(pipeline).reuse_calls > 0
        disable(pipeline)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("SD3Transformer2DModel", {"skip_layers": [1]}),  # skip-layer guidance
        (  # another prompt
            "QwenImageTransformer2DModel",
            {"encoder_hidden_states": torch.ones(B, 2, 8), "encoder_hidden_states_mask": ones(B, 2)},
        ),
    ],
)
def test_the_calls_of_one_step_have_their_own_deltas(name: str, difference: dict[str, Any]) -> None:
    run = Run(name)
    run.inputs[1] = run.inputs[0] | difference
    full = [run.call(branch, TIMES[0]) for branch in (0, 1)]
    pipeline = Pipeline(run.model, diffusers.FlowMatchEulerDiscreteScheduler())
    for reused in run.ranges().values():
        enable(pipeline, DeltaCacheConfig(plan=plan_of(len(run.blocks), reused)))
        pipeline.scheduler.set_timesteps(STEPS)
        for step in range(3):
            pipeline.scheduler._step_index = step
            for branch in (0, 1):
                assert distance(run.call(branch, TIMES[0]), full[branch]) < 1e-5
        assert delta_cache_stats(pipeline).reuse_calls == 4
        disable(pipeline)


def test_every_transformer_of_a_pipeline_is_cached() -> None:
    runs = [Run("Ideogram4Transformer2DModel") for _ in range(2)]
    pipeline = Pipeline(runs[0].model, diffusers.FlowMatchEulerDiscreteScheduler())
    pipeline.unconditional_transformer = runs[1].model
    blocks = len(runs[0].blocks)
    enable(pipeline, DeltaCacheConfig(plan=plan_of(blocks, (0, blocks))))
    pipeline.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(TIMES):
        pipeline.scheduler._step_index = step
        for run in runs:
            run.call(step, t)
    assert delta_cache_stats(pipeline).blocks_run == 2 * 2 * blocks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, text: torch.Tensor, image: torch.Tensor, moment: torch.Tensor) -> tuple:
        return image + self.linear(image) * moment, text + 1


class OwnTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({"main": nn.ModuleList(Residual() for _ in range(3))})

    def forward(self, image: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
        text = torch.zeros_like(image)
        for block in self.stages["main"]:
            image, text = block(text, image=image, moment=moment)
        return image * text


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> OwnTransformer:
    monkeypatch.setattr("delta_dit.adapters.ADAPTERS", dict(ADAPTERS))
    register_adapter("OwnTransformer", Adapter(Stack("stages.main", ("image", "text")), timestep="moment"))
    return OwnTransformer()


def test_an_own_class_can_be_registered_and_subclassed(own: OwnTransformer) -> None:
    class Finetuned(OwnTransformer):
        pass

    model = Finetuned()
    model.load_state_dict(own.state_dict())
    image = r(B, 4)
    with torch.no_grad():
        expected = own(image, torch.tensor(0.9)), image + model.stages["main"][0].linear(image) * 0.9
        enable(model, DeltaCacheConfig(plan=DeltaPlan.of(3, [None, Reuse(1, 3)]), num_inference_steps=2))
        torch.testing.assert_close(model(image, torch.tensor(0.9)), expected[0])
        reused = model(image, torch.tensor(0.5))
    delta = expected[0] / 3 - expected[1]  # of blocks 1 and 2; the text counts 3 blocks
    first = image + own.stages["main"][0].linear(image) * 0.5
    torch.testing.assert_close(reused, (first + delta) * 3)


def test_an_unknown_class_is_told_how_to_register(own: OwnTransformer) -> None:
    class Unknown(nn.Module):
        pass

    with pytest.raises(ValueError, match=r"'Unknown' is unknown; .* delta_dit\.register_adapter"):
        enable(Unknown(), DeltaCacheConfig(num_inference_steps=4))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Adapter(Stack("layers", "image"), timestep="moment"), "OwnTransformer has no list of blocks 'layers'"),
        (Adapter(Stack("stages", "image"), timestep="moment"), "'stages' of OwnTransformer is ModuleDict"),
        (Adapter(Stack("stages.main", "hidden"), timestep="moment"), "Residual.forward takes no 'hidden'"),
        (Adapter(Stack("stages.main", "image")), "OwnTransformer.forward takes no 'timestep'"),
    ],
)
def test_a_wrong_adapter_is_refused_and_leaves_no_trace(own: OwnTransformer, adapter: Adapter, message: str) -> None:
    register_adapter("OwnTransformer", adapter)
    with pytest.raises(ValueError, match=message):
        enable(own, DeltaCacheConfig(num_inference_steps=4))
    assert all("forward" not in vars(module) for module in own.modules())


def glm_cache(blocks: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    cache = GlmImageKVCache(blocks)
    cache.set_mode("write")
    return {"kv_caches": cache}


def qwen_cache(blocks: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    return {"kv_cache": QwenImage21KVCache(blocks), "kv_cache_mode": "extract"}


def sana_cache(blocks: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    return {"kv_cache": SanaWMRefinerKVCache(blocks), "kv_cache_mode": "capture_pre_rope"}


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("Flux2Transformer2DModel", lambda _: {"kv_cache_mode": "extract", "num_ref_tokens": 1}),
        ("GlmImageTransformer2DModel", glm_cache),
        ("QwenImage21Transformer2DModel", qwen_cache),
        ("SanaWMLTX2RefinerTransformer3DModel", sana_cache),
    ],
)
def test_a_call_that_fills_a_key_value_cache_runs_every_block(
    name: str, fill: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(name)
    every = list(range(len(run.blocks)))
    calls = log_calls(monkeypatch, run.blocks)
    enable(run.model, DeltaCacheConfig(plan=plan_of(len(every), (0, len(every))), num_inference_steps=STEPS))
    run.inputs[2] = run.inputs[1] | fill(len(every))
    run.call(0, TIMES[0])
    run.call(2, TIMES[1])
    assert calls == every + every
    run.call(1, TIMES[1])
    assert calls == every + every  # the step itself reuses every block


@pytest.mark.skipif(not diffusers.__version__.startswith("0.42."), reason="the list of another diffusers")
def test_the_table_is_complete() -> None:
    home = diffusers_transformers.__name__
    classes = {cls.__name__ for cls in subclasses(diffusers.ModelMixin) if cls.__module__.startswith(home)}
    assert classes - set(ADAPTERS) == set(NO_ADAPTER)
    assert set(TINY) == set(ADAPTERS)


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__())) - {diffusers.ModelMixin}
