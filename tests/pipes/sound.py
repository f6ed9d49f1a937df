"""Pipelines whose videos have sound: LTX-2 and Kandinsky 6."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers as D
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

from tests.pipes.hunyuan import ltx_vae
from tests.pipes.parts import (
    DIM,
    HEADS,
    VIDEO,
    Case,
    clip,
    embeds,
    euler,
    hunyuan_vae,
    made,
    masked,
    picture,
    pipe,
    pooled,
)  # fmt: skip

_AUDIO = 8 * 16  # channels of a packed audio latent: its channels by the places of a spectrum


class _AudioVae:
    """What the pipeline asks of its audio VAE where the sound stays a latent."""

    mel_compression_ratio, temporal_compression_ratio = 4, 4
    latents_mean, latents_std = torch.zeros(_AUDIO), torch.ones(_AUDIO)
    config = SimpleNamespace(sample_rate=16000, mel_hop_length=160, mel_bins=64, latent_channels=8)


def _ltx2(kind: type, vae: object, **more: object) -> object:
    model = made(
        D.LTX2VideoTransformer3DModel, in_channels=8, out_channels=8, cross_attention_dim=72, audio_in_channels=_AUDIO,
        audio_out_channels=_AUDIO, audio_num_attention_heads=2, audio_attention_head_dim=24,
        audio_cross_attention_dim=48, num_layers=2, caption_channels=DIM, **HEADS, **more,
    )  # fmt: skip
    connectors = made(
        LTX2TextConnectors, caption_channels=DIM, text_proj_in_factor=1, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, rope_double_precision=False,
    )  # fmt: skip
    parts = {"audio_vae": _AudioVae(), "text_encoder": None, "tokenizer": None, "vocoder": None, "vae": vae}
    return pipe(kind, **parts, connectors=connectors, scheduler=euler(), transformer=model)


def _ltx2_call(prompts: int, **more: object) -> dict[str, object]:
    guidance = {"guidance_scale": 3.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
    sizes = {"height": 96, "width": 128, "num_frames": 17}
    return {**VIDEO, **masked(prompts), **guidance, **sizes, **more}


def _dfr_call(prompts: int) -> dict[str, object]:
    """It takes its steps as noise levels, and has no guidance."""
    wanted = ("height", "width", "num_frames", "output_type", "prompt_embeds", "prompt_attention_mask")
    call = {k: v for k, v in _ltx2_call(prompts).items() if k in wanted}
    return {**call, "sigmas": [1.0, 0.9, 0.6, 0.3]}


def _kandinsky6(vae: object) -> object:
    model = made(
        D.Kandinsky6Transformer3DModel, in_visual_dim=4, out_visual_dim=4, in_text_dim=DIM, in_text_dim2=8, time_dim=16,
        model_dim=72, ff_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(12, 12, 12), in_audio_dim=5,
        out_audio_dim=5,
    )  # fmt: skip
    parts = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None, "vae": vae}
    return pipe(D.Kandinsky6TI2VAPipeline, **parts, scheduler=euler(shift=5.0), transformer=model)


def _kandinsky6_call(prompts: int, **more: object) -> dict[str, object]:
    return {
        **VIDEO, "guidance_scale": 3.0, "prompt": None, "prompt_embeds": embeds(prompts),
        "pooled_prompt_embeds": pooled(prompts), "negative_prompt_embeds": embeds(prompts, 9),
        "negative_pooled_prompt_embeds": pooled(prompts, 9), "height": 128, "width": 128,
        "sample_audio": False, **more,
    }  # fmt: skip


_OTHER = {"height": 128, "width": 96, "num_frames": 25}
_OFF = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
CASES = (
    Case("LTX2Pipeline", lambda: _ltx2(D.LTX2Pipeline, ltx_vae()), _ltx2_call, _OTHER, _OFF),
    Case(
        "LTX2Pipeline, all guidance", lambda: _ltx2(D.LTX2Pipeline, ltx_vae()),
        lambda n: _ltx2_call(n, stg_scale=1.0, modality_scale=3.0, spatio_temporal_guidance_blocks=[1]), _OTHER, _OFF,
    ),
    Case(
        "LTX2ImageToVideoPipeline", lambda: _ltx2(D.LTX2ImageToVideoPipeline, ltx_vae()),
        lambda n: _ltx2_call(n, image=picture(96, 128)), _OTHER, _OFF,
    ),
    Case("LTX2ConditionPipeline", lambda: _ltx2(D.LTX2ConditionPipeline, ltx_vae()), _ltx2_call, _OTHER, _OFF),
    Case(
        "LTX2InContextPipeline", lambda: _ltx2(D.LTX2InContextPipeline, ltx_vae()),
        lambda n: _ltx2_call(n, reference_conditions=LTX2ReferenceCondition(clip(17))), _OTHER, _OFF,
    ),
    Case(
        "LTX2HDRPipeline", lambda: _ltx2(D.LTX2HDRPipeline, ltx_vae()),
        lambda n: _ltx2_call(n, reference_conditions=LTX2HDRReferenceCondition(clip(17))), _OTHER, _OFF,
    ),
    Case(
        "LTX2DFRPipeline", lambda: _ltx2(D.LTX2DFRPipeline, ltx_vae(), use_keyframes_abs_pos_embedding=True),
        _dfr_call, _OTHER, None,
    ),
    Case(
        "Kandinsky6TI2VAPipeline", lambda: _kandinsky6(hunyuan_vae()), _kandinsky6_call,
        {"height": 128, "width": 256, "num_frames": 13},
    ),
)  # fmt: skip
