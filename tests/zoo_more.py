"""Further tiny random transformers, for the table of docs/models.md: their capture takes other ways than the zoo's."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from tests.zoo import (
    _CHANNELS,
    _HEADS,
    _TEXT,
    _TEXT_DIM,
    Call,
    Family,
    Size,
    _steps,
    _text,
    _text_mask,
    _video,
    tokens_of,
)  # fmt: skip

_IMAGES: tuple[Size, Size, Size] = ((1, 12, 14), (1, 20, 22), (1, 16, 10))


def _hunyuan15() -> nn.Module:
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=_CHANNELS, out_channels=_CHANNELS, num_layers=2, num_refiner_layers=1, patch_size=2, patch_size_t=1,
        text_embed_dim=_TEXT_DIM, text_embed_2_dim=24, image_embed_dim=20, rope_axes_dim=(12, 12, 12), target_size=16,
        task_type="t2v", **_HEADS,
    )  # fmt: skip


def _hunyuan15_inputs(size: Size, batch: int) -> Call:
    second = torch.ones(batch, 6, dtype=torch.long)
    second[:, 4:] = 0
    return _video(
        size, batch, timestep=torch.full((batch,), 500.0), encoder_attention_mask=_text_mask(batch),
        encoder_hidden_states_2=torch.randn(batch, 6, 24), encoder_attention_mask_2=second,
        image_embeds=torch.zeros(batch, 3, 20),
    )  # fmt: skip


def _cogvideox_2b() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=_CHANNELS, out_channels=_CHANNELS, time_embed_dim=10,
        text_embed_dim=_TEXT_DIM, num_layers=2, sample_width=22, sample_height=10, sample_frames=17, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=_TEXT, use_rotary_positional_embeddings=False,
    )  # fmt: skip


def _cogvideox_2b_inputs(size: Size, batch: int) -> Call:
    frames, height, width = size
    call = _video(size, batch)
    return call | {"hidden_states": torch.randn(batch, frames, _CHANNELS, height, width)}


def _z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=_CHANNELS, dim=64, n_layers=2, n_refiner_layers=1,
        n_heads=2, n_kv_heads=2, qk_norm=True, cap_feat_dim=_TEXT_DIM, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 12, 12], axes_lens=[256, 64, 64],
    )  # fmt: skip


def _z_image_inputs(size: Size, batch: int) -> Call:
    return {
        "x": [torch.randn(_CHANNELS, 1, *size[1:]) for _ in range(batch)],
        "t": torch.rand(batch),
        "cap_feats": [torch.randn(_TEXT, _TEXT_DIM) for _ in range(batch)],
        "return_dict": False,
    }


def _flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=8, num_layers=2, num_single_layers=2, joint_attention_dim=_TEXT_DIM,
        axes_dims_rope=(8, 8, 8, 12), **_HEADS,
    )  # fmt: skip


def _flux2_inputs(size: Size, batch: int) -> Call:
    height, width = size[1] // 2, size[2] // 2
    places = torch.zeros(height, width, 4)
    places[..., 1] += torch.arange(height)[:, None]
    places[..., 2] += torch.arange(width)
    return {
        "hidden_states": torch.randn(batch, height * width, 8),
        "encoder_hidden_states": _text(batch),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": places.view(1, -1, 4).repeat(batch, 1, 1),
        "txt_ids": torch.zeros(batch, _TEXT, 4),
        "guidance": torch.full((batch,), 3.5),
        "return_dict": False,
    }


def _sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=_CHANNELS, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        caption_projection_dim=32, joint_attention_dim=_TEXT_DIM, pooled_projection_dim=8, out_channels=_CHANNELS,
        pos_embed_max_size=24,
    )  # fmt: skip


def _sd3_inputs(size: Size, batch: int) -> Call:
    call = _video(size, batch, pooled_projections=torch.randn(batch, 8))
    return call | {"hidden_states": torch.randn(batch, _CHANNELS, *size[1:])}


def _mochi() -> nn.Module:
    return diffusers.MochiTransformer3DModel(
        patch_size=2, num_layers=2, pooled_projection_dim=24, in_channels=_CHANNELS, qk_norm="rms_norm",
        text_embed_dim=_TEXT_DIM, time_embed_dim=6, max_sequence_length=_TEXT, **_HEADS,
    )  # fmt: skip


def _sana_video() -> nn.Module:
    return diffusers.SanaVideoTransformer3DModel(
        in_channels=_CHANNELS, out_channels=_CHANNELS, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=36, cross_attention_dim=72, caption_channels=_TEXT_DIM, mlp_ratio=2.0, sample_size=8,
        patch_size=(1, 2, 2), rope_max_seq_len=64, qk_norm="rms_norm_across_heads", **_HEADS,
    )  # fmt: skip


def _allegro() -> nn.Module:
    return diffusers.AllegroTransformer3DModel(
        patch_size=2, patch_size_t=1, in_channels=_CHANNELS, out_channels=_CHANNELS, num_layers=2,
        cross_attention_dim=72, sample_height=10, sample_width=22, sample_frames=10, caption_channels=_TEXT_DIM,
        **_HEADS,
    )  # fmt: skip


def _allegro_inputs(size: Size, batch: int) -> Call:
    counts = size[0], size[1] // 2, size[2] // 2
    places = torch.cartesian_prod(*(torch.arange(n) for n in counts)).T.contiguous()
    assert places.shape[1] == tokens_of(size)
    tables = tuple((torch.randn(n, 12), torch.randn(n, 12)) for n in counts)
    rotary = tables, tuple(places[i : i + 1] for i in range(3))
    return _video(size, batch, encoder_attention_mask=torch.ones(batch, _TEXT), image_rotary_emb=rotary)


def _latte() -> nn.Module:
    return diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=2, patch_size=2, caption_channels=_TEXT_DIM, in_channels=_CHANNELS,
        cross_attention_dim=72, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=6, **_HEADS,
    )  # fmt: skip


def _latte_inputs(size: Size, batch: int) -> Call:
    return _video(size, batch, timestep=_steps(batch), enable_temporal_attentions=True)


def _framepack() -> nn.Module:
    return diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=_CHANNELS, out_channels=_CHANNELS, num_layers=2, num_single_layers=2, num_refiner_layers=1,
        patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=_TEXT_DIM, pooled_projection_dim=8,
        rope_axes_dim=(12, 12, 12), has_image_proj=True, image_proj_dim=20, has_clean_x_embedder=True, **_HEADS,
    )  # fmt: skip


def _framepack_inputs(size: Size, batch: int) -> Call:
    """With history in front of the video: an image and a frame, two frames at half, 16 at a quarter of the size."""
    frames, height, width = size
    call = _video(
        size, batch, encoder_attention_mask=_text_mask(batch), pooled_projections=torch.randn(batch, 8),
        guidance=torch.full((batch,), 6000.0), image_embeds=torch.randn(batch, 3, 20),
        indices_latents=torch.arange(1, 1 + frames),
    )  # fmt: skip
    after = 1 + frames
    call["latents_clean"], call["indices_latents_clean"] = _history(batch, 2, height, width), torch.tensor([0, after])
    for name, first, count in (("2x", after + 1, 2), ("4x", after + 3, 16)):
        call[f"latents_history_{name}"] = _history(batch, count, height, width)
        call[f"indices_latents_history_{name}"] = torch.arange(first, first + count)
    return call


def _history(batch: int, frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, _CHANNELS, frames, height, width)


def _masked(size: Size, batch: int) -> Call:
    return _video(size, batch, encoder_attention_mask=_text_mask(batch))


def _masked_by_truth(size: Size, batch: int) -> Call:
    return _video(size, batch, encoder_attention_mask=_text_mask(batch).bool())


def _hidream() -> nn.Module:
    return diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=_CHANNELS, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=[_TEXT_DIM, 12], text_emb_dim=8, axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32), llama_layers=[0, 1, 1], num_routed_experts=2, num_activated_experts=1,
    )  # fmt: skip


def _hidream_inputs(size: Size, batch: int) -> Call:
    return {
        "hidden_states": torch.randn(batch, _CHANNELS, *size[1:]), "timesteps": _steps(batch),
        "encoder_hidden_states_t5": _text(batch), "encoder_hidden_states_llama3": torch.randn(2, batch, _TEXT, 12),
        "pooled_embeds": torch.randn(batch, 8), "return_dict": False,
    }  # fmt: skip


def _anyflow_far() -> nn.Module:
    return diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), in_channels=_CHANNELS, out_channels=_CHANNELS,
        text_dim=_TEXT_DIM, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=64, **_HEADS,
    )  # fmt: skip


def _anyflow_far_inputs(size: Size, batch: int) -> Call:
    """All frames at once, in two chunks."""
    frames, height, width = size
    return {
        "hidden_states": torch.randn(batch, frames, _CHANNELS, height, width), "encoder_hidden_states": _text(batch),
        "timestep": torch.full((batch, frames), 500.0), "r_timestep": torch.full((batch, frames), 400.0),
        "chunk_partition": [frames - 2, 2], "return_dict": False,
    }  # fmt: skip


MORE = (
    Family("framepack", _framepack, _framepack_inputs, kinds=2),
    Family("hunyuan15", _hunyuan15, _hunyuan15_inputs),
    Family("cogvideox_2b", _cogvideox_2b, _cogvideox_2b_inputs, ((5, 10, 22), (3, 10, 22), (4, 10, 22))),
    Family("mochi", _mochi, _masked_by_truth),
    Family("sana_video", _sana_video, _masked),
    Family("allegro", _allegro, _allegro_inputs),
    Family("latte", _latte, _latte_inputs, ((6, 6, 14), (6, 10, 22), (6, 8, 10))),
    Family("flux2", _flux2, _flux2_inputs, _IMAGES),
    Family("sd3", _sd3, _sd3_inputs, _IMAGES),
    Family("z_image", _z_image, _z_image_inputs, _IMAGES),
    Family("hidream", _hidream, _hidream_inputs, _IMAGES),
    Family("anyflow_far", _anyflow_far, _anyflow_far_inputs, ((4, 8, 12), (6, 12, 20), (5, 16, 8))),
)
