"""Pipelines around HunyuanVideo, CogVideoX, ConsisID, LTX and Mochi."""

from __future__ import annotations

import importlib

import diffusers as D
import torch
from diffusers.guiders import ClassifierFreeGuidance

from tests.pipes.parts import (
    DIM,
    HEADS,
    LENGTH,
    SMALLER,
    VIDEO,
    Case,
    clip,
    cogvideox_vae,
    embeds,
    euler,
    hunyuan_vae,
    made,
    masked,
    picture,
    pipe,
    pooled,
    siglip_parts,
    texts,
)  # fmt: skip

_TWO_TEXTS = {
    "text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None, "vae": None,
}  # fmt: skip
_ONE_TEXT = {"text_encoder": None, "tokenizer": None, "vae": None}
_GUIDED = {**VIDEO, "guidance_scale": 3.0}
_TRUE_OFF = {"true_cfg_scale": 1.0}


def _hunyuan_config(**more: object) -> dict[str, object]:
    return {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1,
        "patch_size": 2, "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": DIM,
        "rope_axes_dim": (12, 12, 12),
        "pooled_projection_dim": 8, **HEADS, **more,
    }  # fmt: skip


def _hunyuan(**more: object) -> object:
    return made(D.HunyuanVideoTransformer3DModel, **_hunyuan_config(**more))


def _hunyuan_pipe(kind: type, **parts: object) -> object:
    return pipe(kind, **{**_TWO_TEXTS, "scheduler": euler(shift=7.0), **parts})


def _hunyuan_call(prompts: int, guided: bool = True, **more: object) -> dict[str, object]:
    mask = torch.ones(prompts, LENGTH)
    call = {
        **VIDEO, "prompt": None, "prompt_embeds": embeds(prompts), "pooled_prompt_embeds": pooled(prompts),
        "prompt_attention_mask": mask,
    }  # fmt: skip
    negative = {
        "true_cfg_scale": 4.0, "negative_prompt_embeds": embeds(prompts, 9),
        "negative_pooled_prompt_embeds": pooled(prompts, 9), "negative_prompt_attention_mask": mask.clone(),
    }  # fmt: skip
    return {**call, **(negative if guided else {}), **more}


def _framepack() -> object:
    config = _hunyuan_config(has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True)
    model = made(D.HunyuanVideoFramepackTransformer3DModel, **config)
    return _hunyuan_pipe(D.HunyuanVideoFramepackPipeline, transformer=model, vae=hunyuan_vae(), **siglip_parts())


def _hunyuan15(kind: type, **parts: object) -> object:
    model = made(
        D.HunyuanVideo15Transformer3DModel, in_channels=9, out_channels=4, num_layers=2, num_refiner_layers=1,
        patch_size=1, patch_size_t=1, text_embed_dim=DIM, text_embed_2_dim=24, image_embed_dim=16,
        rope_axes_dim=(12, 12, 12), target_size=16, task_type="t2v", **HEADS,
    )  # fmt: skip
    vae = made(
        D.AutoencoderKLHunyuanVideo15, in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 16),
        layers_per_block=1, spatial_compression_ratio=4, temporal_compression_ratio=4, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    found = _hunyuan_pipe(kind, transformer=model, vae=vae, guider=ClassifierFreeGuidance(guidance_scale=3.0), **parts)
    found.vision_num_semantic_tokens = 3  # type: ignore[attr-defined]
    return found


def _hunyuan15_call(prompts: int) -> dict[str, object]:
    mask, second = torch.ones(prompts, LENGTH), torch.ones(prompts, 6)
    return {
        **VIDEO, **texts(prompts), "height": 32, "width": 48, "prompt_embeds_mask": mask,
        "prompt_embeds_mask_2": second,
        "negative_prompt_embeds_mask": mask.clone(), "prompt_embeds_2": embeds(prompts, 4, 6, 24),
        "negative_prompt_embeds_2": embeds(prompts, 5, 6, 24), "negative_prompt_embeds_mask_2": second.clone(),
    }  # fmt: skip


def _hunyuan15_image_call(prompts: int) -> dict[str, object]:
    call = _hunyuan15_call(prompts)
    return {k: v for k, v in call.items() if k not in ("height", "width")} | {"image": picture(32, 48)}


def _cog_config(**more: object) -> dict[str, object]:
    return {
        "in_channels": 4, "out_channels": 4, "time_embed_dim": 10, "text_embed_dim": DIM, "num_layers": 2,
        "sample_width": 8, "sample_height": 6, "sample_frames": 9, "patch_size": 2, "temporal_compression_ratio": 4,
        "max_text_seq_length": LENGTH, "use_rotary_positional_embeddings": True, "num_attention_heads": 2,
        "attention_head_dim": 32, **more,
    }  # fmt: skip


def _cog(kind: type, model: type = D.CogVideoXTransformer3DModel, vae: object = None, **config: object) -> object:
    scheduler = D.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True,
        snr_shift_scale=1.0, timestep_spacing="trailing",
    )  # fmt: skip
    found = made(model, **_cog_config(**config))
    return pipe(kind, **{**_ONE_TEXT, "vae": vae}, scheduler=scheduler, transformer=found)


def _cog_call(prompts: int, **more: object) -> dict[str, object]:
    return {**_GUIDED, **texts(prompts), **more}


def _cog_video_call(prompts: int, **more: object) -> dict[str, object]:
    return {k: v for k, v in _cog_call(prompts, **more).items() if k != "num_frames"}


def _consisid() -> object:
    """Its module is imported by its own name: diffusers hides it where OpenCV, which only draws key points, is not."""
    hidden = importlib.import_module("diffusers.pipelines.consisid.pipeline_consisid")
    face = {
        "is_train_face": True, "cross_attn_dim_head": 16, "cross_attn_num_heads": 2, "LFE_id_dim": 12,
        "LFE_vit_dim": 16, "LFE_depth": 2, "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_querie": 4,
        "LFE_output_dim": 42, "LFE_ff_mult": 1, "LFE_num_scale": 2,
    }  # fmt: skip
    model = D.ConsisIDTransformer3DModel
    return _cog(hidden.ConsisIDPipeline, model, cogvideox_vae(), in_channels=8, **face)


def _consisid_call(prompts: int) -> dict[str, object]:
    face = {"id_cond": embeds(1, 3, 1, 12)[:, 0], "id_vit_hidden": [embeds(1, seed, 6) for seed in (4, 5)]}
    return _cog_call(prompts, image=[picture()] * prompts, **face)


def _ltx(kind: type, vae: object = None) -> object:
    model = made(
        D.LTXVideoTransformer3DModel, in_channels=8, out_channels=8, cross_attention_dim=72, num_layers=2,
        caption_channels=DIM, **HEADS,
    )  # fmt: skip
    return pipe(kind, **{**_ONE_TEXT, "vae": vae}, scheduler=euler(), transformer=model)


def ltx_vae() -> object:
    return made(
        D.AutoencoderKLLTXVideo, in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1,
        1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=4, patch_size_t=1, encoder_causal=True, decoder_causal=False,
    )  # fmt: skip


def _ltx_call(prompts: int, **more: object) -> dict[str, object]:
    return {**_GUIDED, **masked(prompts), "height": 96, "width": 128, "num_frames": 17, **more}


def _ltx_long() -> object:
    """It takes prompts as words alone: each is encoded to the same random text."""
    found = _ltx(D.LTXI2VLongMultiPromptPipeline, ltx_vae())

    def encode_prompt(prompt: object, negative_prompt: object = None, **_: object) -> tuple[torch.Tensor, ...]:
        both = masked(1)
        negative = both["negative_prompt_embeds"], both["negative_prompt_attention_mask"]
        return both["prompt_embeds"], both["prompt_attention_mask"], *negative  # type: ignore[return-value]

    found.encode_prompt = encode_prompt  # type: ignore[attr-defined]
    return found


def _ltx_long_call(prompts: int) -> dict[str, object]:
    sizes = {"height": 96, "width": 128, "num_frames": 33, "temporal_tile_size": 24, "temporal_overlap": 8}
    return {**_GUIDED, **sizes, "prompt": ["a video"] * prompts}


_LTX_OTHER = {"height": 128, "width": 96, "num_frames": 25}


def _mochi() -> object:
    model = made(
        D.MochiTransformer3DModel, patch_size=2, num_layers=2, pooled_projection_dim=24, in_channels=4,
        qk_norm="rms_norm", text_embed_dim=DIM, time_embed_dim=6, max_sequence_length=LENGTH, **HEADS,
    )  # fmt: skip
    return pipe(D.MochiPipeline, **_ONE_TEXT, scheduler=euler(), transformer=model)


CASES = (
    Case(
        "HunyuanVideoPipeline", lambda: _hunyuan_pipe(D.HunyuanVideoPipeline, transformer=_hunyuan()), _hunyuan_call,
        off=_TRUE_OFF,
    ),
    Case(
        "HunyuanVideoImageToVideoPipeline",
        lambda: _hunyuan_pipe(
            D.HunyuanVideoImageToVideoPipeline, vae=hunyuan_vae(), image_processor=None,
            transformer=_hunyuan(image_condition_type="token_replace"),
        ),
        lambda n: _hunyuan_call(n, image=[picture()] * n), off=_TRUE_OFF,
    ),
    Case(
        "HunyuanVideoImageToVideoPipeline, image beside the latent",
        lambda: _hunyuan_pipe(
            D.HunyuanVideoImageToVideoPipeline, vae=hunyuan_vae(), image_processor=None,
            transformer=_hunyuan(image_condition_type="latent_concat", in_channels=9),
        ),
        lambda n: _hunyuan_call(n, image=[picture()] * n), off=_TRUE_OFF,
    ),
    Case(
        "HunyuanSkyreelsImageToVideoPipeline",
        lambda: _hunyuan_pipe(
            D.HunyuanSkyreelsImageToVideoPipeline, vae=hunyuan_vae(), transformer=_hunyuan(in_channels=8)
        ),
        lambda n: _hunyuan_call(n, image=[picture()] * n), off=_TRUE_OFF,
    ),
    Case(
        "HunyuanVideoFramepackPipeline", _framepack,
        lambda n: _hunyuan_call(n, image=[picture()] * n, height=64, num_frames=17, latent_window_size=3),
        {"height": 96, "width": 64}, _TRUE_OFF,
    ),
    Case(
        "HunyuanVideo15Pipeline", lambda: _hunyuan15(D.HunyuanVideo15Pipeline), _hunyuan15_call,
        {"height": 48, "width": 32, "num_frames": 13}, None,
    ),
    Case(
        "HunyuanVideo15ImageToVideoPipeline",
        lambda: _hunyuan15(D.HunyuanVideo15ImageToVideoPipeline, **siglip_parts()), _hunyuan15_image_call,
        {"num_frames": 13}, None,
    ),
    Case("CogVideoXPipeline", lambda: _cog(D.CogVideoXPipeline), _cog_call),
    Case(
        "CogVideoXPipeline, learned positions",
        lambda: _cog(D.CogVideoXPipeline, use_rotary_positional_embeddings=False), _cog_call, {"num_frames": 13},
    ),
    Case(
        "CogVideoXImageToVideoPipeline",
        lambda: _cog(D.CogVideoXImageToVideoPipeline, vae=cogvideox_vae(), in_channels=8),
        lambda n: _cog_call(n, image=[picture()] * n),
    ),
    Case(
        "CogVideoXVideoToVideoPipeline", lambda: _cog(D.CogVideoXVideoToVideoPipeline, vae=cogvideox_vae()),
        lambda n: _cog_video_call(n, video=clip(), strength=0.8), {"height": 64, "width": 48},
    ),
    Case(
        "CogVideoXFunControlPipeline",
        lambda: _cog(D.CogVideoXFunControlPipeline, vae=cogvideox_vae(), in_channels=8),
        lambda n: _cog_video_call(n, control_video=clip()), {"height": 64, "width": 48},
    ),
    Case("ConsisIDPipeline", _consisid, _consisid_call),
    Case("LTXPipeline", lambda: _ltx(D.LTXPipeline), _ltx_call, _LTX_OTHER),
    Case(
        "LTXImageToVideoPipeline", lambda: _ltx(D.LTXImageToVideoPipeline, ltx_vae()),
        lambda n: _ltx_call(n, image=picture(96, 128)), _LTX_OTHER,
    ),
    Case(
        "LTXConditionPipeline", lambda: _ltx(D.LTXConditionPipeline, ltx_vae()),
        lambda n: _ltx_call(n, image=picture(96, 128)), _LTX_OTHER,
    ),
    Case("LTXI2VLongMultiPromptPipeline", _ltx_long, _ltx_long_call, {"height": 128, "width": 96}),
    Case("MochiPipeline", _mochi, lambda n: {**_GUIDED, **masked(n, torch.bool)}, dict(SMALLER)),
)  # fmt: skip
