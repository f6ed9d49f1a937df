"""Pipelines around Wan's transformer and those made after it: SkyReels-V2, ChronoEdit, LucyEdit, AnyFlow, Helios."""

from __future__ import annotations

import diffusers as D

from tests.pipes.parts import (
    VIDEO,
    Arguments,
    Case,
    clip,
    clip_parts,
    made,
    picture,
    pipe,
    texts,
    unipc,
    wan_vae,
)  # fmt: skip

_CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 64,
}  # fmt: skip
_LATENTS = {"in_channels": 16, "out_channels": 16}
_IMAGE = {"in_channels": 36, "out_channels": 16, "image_dim": 20, "added_kv_proj_dim": 32}
_GUIDED = {**VIDEO, "guidance_scale": 3.0}
_PARTS = {"tokenizer": None, "text_encoder": None, "vae": None}


def _wan(seed: int = 0, kind: type = D.WanTransformer3DModel, **more: object) -> object:
    return made(kind, seed, **{**_CONFIG, **more})


def _skyreels(**more: object) -> object:
    return _wan(kind=D.SkyReelsV2Transformer3DModel, **more)


def _t2v(prompts: int, **more: object) -> dict[str, object]:
    return {**_GUIDED, **texts(prompts), **more}


def _i2v(prompts: int, **more: object) -> dict[str, object]:
    return _t2v(prompts, image=picture(), **more)


def _pipe(kind: type, **parts: object) -> object:
    return pipe(kind, **{**_PARTS, "scheduler": unipc(), **parts})


_FORCING = {"height": 48, "width": 64, "num_frames": 29, "ar_step": 2, "causal_block_size": 2}
_LONGER = {"height": 64, "width": 48, "num_frames": 37, "base_num_frames": 37}
_CHUNKED = {"num_frame_per_block": 2}


def _forcing(prompts: int, **more: object) -> dict[str, object]:
    return _t2v(prompts, **{**_FORCING, **more})


def _v2v(prompts: int, **more: object) -> dict[str, object]:
    call = _t2v(prompts, video=clip(), **more)
    return {k: v for k, v in call.items() if k != "num_frames"}


def _helios(prompts: int) -> dict[str, object]:
    return _t2v(prompts, num_latent_frames_per_chunk=3, history_sizes=[4, 2, 1], num_frames=21)


def _pyramid(prompts: int) -> dict[str, object]:
    call = {**_helios(prompts), "pyramid_num_inference_steps_list": [2, 2, 2], "height": 64, "width": 64}
    return {k: v for k, v in call.items() if k != "num_inference_steps"}


def _helios_model() -> object:
    sizes = {k: v for k, v in _CONFIG.items() if k != "rope_max_seq_len"}
    flags = {"guidance_cross_attn": True, "zero_history_timestep": True, "is_amplify_history": True}
    return made(D.HeliosTransformer3DModel, **{**sizes, **_LATENTS, **flags, "rope_dim": (8, 4, 4)})


def _animated(prompts: int) -> dict[str, object]:
    videos = {"pose_video": clip(5), "face_video": clip(5)}
    call = _t2v(prompts, image=picture(), segment_frame_length=5, guidance_scale=1.0, **videos)
    return {k: v for k, v in call.items() if k != "num_frames"}


def _animate_model() -> object:
    sizes = {str(n): 16 for n in (4, 8, 16)}
    return _wan(
        kind=D.WanAnimateTransformer3DModel, **{**_IMAGE, "latent_channels": 16}, motion_encoder_channel_sizes=sizes,
        motion_encoder_size=16, motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
        face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )  # fmt: skip


def _any_far() -> object:
    config = {**_CONFIG, **_LATENTS, "compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3}
    return made(D.AnyFlowFARTransformer3DModel, chunk_partition=(1, 2, 2), **config)


_FROM_IMAGE: Arguments = {"height": 64, "width": 48}
CASES = (
    Case("WanPipeline", lambda: _pipe(D.WanPipeline, transformer=_wan()), _t2v),
    Case(
        "WanPipeline, two experts",
        lambda: _pipe(D.WanPipeline, transformer=_wan(), transformer_2=_wan(3), boundary_ratio=0.6),
        lambda n: _t2v(n, guidance_scale_2=2.0), off={"guidance_scale": 1.0, "guidance_scale_2": 1.0},
    ),
    Case(
        "WanPipeline, only the second expert",
        lambda: _pipe(D.WanPipeline, transformer=None, transformer_2=_wan(3), boundary_ratio=1.1),
        lambda n: _t2v(n, guidance_scale_2=2.0), off={"guidance_scale": 1.0, "guidance_scale_2": 1.0},
    ),
    Case(
        "WanPipeline, a timestep per token", lambda: _pipe(D.WanPipeline, transformer=_wan(),
        expand_timesteps=True), _t2v
    ),
    Case(
        "WanImageToVideoPipeline",
        lambda: _pipe(D.WanImageToVideoPipeline, vae=wan_vae(), transformer=_wan(**_IMAGE), **clip_parts()), _i2v,
    ),
    Case(
        "WanImageToVideoPipeline, first and last frame",
        lambda: _pipe(
            D.WanImageToVideoPipeline, vae=wan_vae(), transformer=_wan(**_IMAGE, pos_embed_seq_len=10), **clip_parts()
        ),
        lambda n: _i2v(n, last_image=picture(seed=1)),
    ),
    Case(
        "WanImageToVideoPipeline, a timestep per token",
        lambda: _pipe(D.WanImageToVideoPipeline, vae=wan_vae(), transformer=_wan(**_LATENTS), expand_timesteps=True),
        _i2v,
    ),
    Case(
        "WanVideoToVideoPipeline",
        lambda: _pipe(D.WanVideoToVideoPipeline, vae=wan_vae(), transformer=_wan(**_LATENTS)),
        lambda n: _v2v(n, strength=0.8), _FROM_IMAGE,
    ),
    Case(
        "WanVACEPipeline",
        lambda: _pipe(
            D.WanVACEPipeline, vae=wan_vae(),
            transformer=_wan(kind=D.WanVACETransformer3DModel, **_LATENTS, vace_layers=[0], vace_in_channels=96),
        ),
        _t2v,
    ),
    Case(
        "WanAnimatePipeline",
        lambda: _pipe(D.WanAnimatePipeline, vae=wan_vae(), transformer=_animate_model(), **clip_parts()),
        _animated, _FROM_IMAGE, None,
    ),
    Case(
        "ChronoEditPipeline",
        lambda: _pipe(
            D.ChronoEditPipeline, vae=wan_vae(), **clip_parts(),
            transformer=_wan(kind=D.ChronoEditTransformer3DModel, **_IMAGE, rope_temporal_skip_len=8),
        ),
        _i2v,
    ),
    Case(
        "LucyEditPipeline",
        lambda: _pipe(D.LucyEditPipeline, vae=wan_vae(), transformer=_wan(in_channels=32, out_channels=16)),
        lambda n: {**_v2v(n), "num_frames": 9},
        {"height": 64, "width": 48},
    ),
    Case("SkyReelsV2Pipeline", lambda: _pipe(D.SkyReelsV2Pipeline, transformer=_skyreels()), _t2v),
    Case(
        "SkyReelsV2ImageToVideoPipeline",
        lambda: _pipe(D.SkyReelsV2ImageToVideoPipeline, vae=wan_vae(), transformer=_skyreels(**_IMAGE), **clip_parts()),
        _i2v,
    ),
    Case(
        "SkyReelsV2DiffusionForcingPipeline",
        lambda: _pipe(D.SkyReelsV2DiffusionForcingPipeline, transformer=_skyreels(**_CHUNKED)), _forcing, _LONGER,
    ),
    Case(
        "SkyReelsV2DiffusionForcingPipeline, all frames in step",
        lambda: _pipe(D.SkyReelsV2DiffusionForcingPipeline, transformer=_skyreels()),
        lambda n: _t2v(n, num_frames=29), {"height": 64, "width": 48, "num_frames": 37},
    ),
    Case(
        "SkyReelsV2DiffusionForcingPipeline, long video",
        lambda: _pipe(
            D.SkyReelsV2DiffusionForcingPipeline, vae=wan_vae(), transformer=_skyreels(**_LATENTS, **_CHUNKED)
        ),
        lambda n: _forcing(n, num_frames=45, base_num_frames=29, overlap_history=5, addnoise_condition=20),
        {"height": 64, "width": 48},
    ),
    Case(
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        lambda: _pipe(
            D.SkyReelsV2DiffusionForcingImageToVideoPipeline, vae=wan_vae(),
            transformer=_skyreels(**_LATENTS, **_CHUNKED),
        ),
        lambda n: _forcing(n, image=picture()), _LONGER,
    ),
    Case(
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        lambda: _pipe(
            D.SkyReelsV2DiffusionForcingVideoToVideoPipeline, vae=wan_vae(),
            transformer=_skyreels(**_LATENTS, **_CHUNKED),
        ),
        lambda n: _forcing(n, video=clip(), num_frames=45, base_num_frames=29, overlap_history=5), _FROM_IMAGE,
    ),
    Case(
        "AnyFlowPipeline",
        lambda: _pipe(
            D.AnyFlowPipeline, vae=wan_vae(), scheduler=D.FlowMapEulerDiscreteScheduler(),
            transformer=made(D.AnyFlowTransformer3DModel, **{**_CONFIG, **_LATENTS}),
        ),
        _t2v, off={"guidance_scale": 1.0, "negative_prompt_embeds": None},
    ),
    Case(
        "AnyFlowFARPipeline",
        lambda: _pipe(
            D.AnyFlowFARPipeline, vae=wan_vae(), scheduler=D.FlowMapEulerDiscreteScheduler(), transformer=_any_far()
        ),
        lambda n: _t2v(n, num_frames=17, chunk_partition=[1, 2, 2], height=64, width=64), {"height": 96, "width": 64},
        {"guidance_scale": 1.0, "negative_prompt_embeds": None},
    ),
    Case(
        "HeliosPipeline",
        lambda: _pipe(
            D.HeliosPipeline, vae=wan_vae(), scheduler=D.HeliosScheduler(stages=1, stage_range=[0, 1]),
            transformer=_helios_model(),
        ),
        _helios, {"height": 64, "width": 48},
    ),
    Case(
        "HeliosPyramidPipeline",
        lambda: _pipe(
            D.HeliosPyramidPipeline, vae=wan_vae(), scheduler=D.HeliosScheduler(gamma=0.3), transformer=_helios_model()
        ),
        _pyramid,
        {"height": 128, "width": 64},
    ),
)  # fmt: skip
