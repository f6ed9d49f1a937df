"""Pipelines around Cosmos, Sana-Video, Allegro, Latte, EasyAnimate, Kandinsky, Motif-Video and JoyImage."""

from __future__ import annotations

import functools
import importlib
import types

import diffusers as D
import torch
import torch.nn.functional as F
from diffusers.guiders import ClassifierFreeGuidance

from tests.pipes.parts import (
    DIM,
    HEADS,
    LENGTH,
    VIDEO,
    Arguments,
    Case,
    clip,
    embeds,
    euler,
    hunyuan_vae,
    image_vae,
    made,
    masked,
    picture,
    pipe,
    pooled,
    siglip_parts,
    texts,
    unipc,
    wan_vae,
)  # fmt: skip

_ONE_TEXT = {"text_encoder": None, "tokenizer": None, "vae": None}
_GUIDED = {**VIDEO, "guidance_scale": 3.0}


class _Safe:
    """Stands for the safety checker, whose package is not needed here."""

    def __init__(self, *_: object, **__: object) -> None:
        self.checked = 0

    def to(self, *_: object) -> _Safe:
        return self

    def check_text_safety(self, _: object) -> bool:
        return True

    def check_video_safety(self, video: object) -> object:
        return video


def _resize(mask: torch.Tensor, size: list[int], interpolation: object = None) -> torch.Tensor:
    return F.interpolate(mask, size=size, mode="nearest")


@functools.cache
def _without_torchvision() -> None:
    """Cosmos resizes a mask by torchvision, which is not installed; it asks for nothing else of it."""
    for name in ("transformers.transformer_cosmos", "controlnets.controlnet_cosmos"):
        model = importlib.import_module(f"diffusers.models.{name}")
        if "transforms" not in vars(model):
            model.transforms = types.SimpleNamespace(  # type: ignore[attr-defined]
                functional=types.SimpleNamespace(resize=_resize),
                InterpolationMode=types.SimpleNamespace(NEAREST="nearest"),
            )


def _cosmos(
    kind: type, scheduler: object, vae: object = None, more: Arguments | None = None, **config: object
) -> object:
    _without_torchvision()
    importlib.import_module(kind.__module__).CosmosSafetyChecker = _Safe  # type: ignore[attr-defined]
    sizes = {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "mlp_ratio": 2, "text_embed_dim": DIM,
        "adaln_lora_dim": 10, "max_size": (16, 32, 32), "patch_size": (1, 2, 2), "concat_padding_mask": True,
        "extra_pos_embed_type": None, **HEADS,
    }  # fmt: skip
    model = made(D.CosmosTransformer3DModel, **{**sizes, **config})
    parts = {**_ONE_TEXT, "vae": vae, "scheduler": scheduler, "transformer": model, "safety_checker": _Safe()}
    return pipe(kind, **parts, **(more or {}))


def _edm() -> object:
    return D.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", num_train_timesteps=1000,
        prediction_type="epsilon", rho=7.0, final_sigmas_type="sigma_min",
    )  # fmt: skip


def _cosmos_call(prompts: int, **more: object) -> dict[str, object]:
    return {**_GUIDED, **texts(prompts), **more}


def _cosmos_vae() -> object:
    return made(
        D.AutoencoderKLCosmos, in_channels=3, out_channels=3, latent_channels=4, encoder_block_out_channels=(8,
        8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(8,), resolution=64, num_layers=2, patch_size=4,
        patch_type="haar", scaling_factor=1.0, spatial_compression_ratio=8, temporal_compression_ratio=8,
    )  # fmt: skip


_COSMOS_VIDEO = {"in_channels": 17, "out_channels": 16}


def _cosmos_transfer() -> object:
    control = made(
        D.CosmosControlNetModel, n_controlnet_blocks=1, in_channels=18, latent_channels=18, model_channels=72,
        num_attention_heads=2, attention_head_dim=36, mlp_ratio=2, text_embed_dim=DIM, adaln_lora_dim=10,
        max_size=(16, 32, 32), encoder_hidden_states_channels=DIM,
    )  # fmt: skip
    kind, more = D.Cosmos2_5_TransferPipeline, {"controlnet": control}
    return _cosmos(kind, unipc(), wan_vae(), more, controlnet_block_every_n=2, **_COSMOS_VIDEO)


def _sana(kind: type, vae: object = None, **config: object) -> object:
    model = made(
        D.SanaVideoTransformer3DModel, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=36,
        cross_attention_dim=72, caption_channels=DIM, mlp_ratio=2.0, sample_size=8, patch_size=(1, 2, 2),
        rope_max_seq_len=64, qk_norm="rms_norm_across_heads", **HEADS, **{"in_channels": 4, "out_channels": 4,
        **config},
    )  # fmt: skip
    return pipe(kind, **{**_ONE_TEXT, "vae": vae}, scheduler=unipc(), transformer=model)


def _sana_call(prompts: int, **more: object) -> dict[str, object]:
    call = {k: v for k, v in _GUIDED.items() if k != "num_frames"}
    sizes = {"frames": 9, "height": 64, "width": 96, "use_resolution_binning": False}
    return {**call, **masked(prompts), **sizes, "negative_prompt": None, **more}


def _allegro() -> object:
    model = made(
        D.AllegroTransformer3DModel, patch_size=2, patch_size_t=1, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=72, sample_height=10, sample_width=22, sample_frames=10, caption_channels=DIM, **HEADS,
    )  # fmt: skip
    return pipe(D.AllegroPipeline, **_ONE_TEXT, scheduler=D.EulerAncestralDiscreteScheduler(), transformer=model)


def _latte() -> object:
    model = made(
        D.LatteTransformer3DModel, sample_size=8, num_layers=1, patch_size=2, caption_channels=DIM, in_channels=4,
        cross_attention_dim=72, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=3, **HEADS,
    )  # fmt: skip
    scheduler = D.DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
    return pipe(D.LattePipeline, **{**_ONE_TEXT, "vae": image_vae()}, scheduler=scheduler, transformer=model)


def _latte_call(prompts: int) -> dict[str, object]:
    call = {k: v for k, v in _GUIDED.items() if k != "num_frames"}
    return {**call, **texts(prompts), "negative_prompt": None, "video_length": 3, "height": 64, "width": 64}


def _easy(kind: type, channels: int = 4, **more: object) -> object:
    model = made(
        D.EasyAnimateTransformer3DModel, attention_head_dim=32, num_attention_heads=2, in_channels=channels,
        mmdit_layers=1, num_layers=2, out_channels=4, patch_size=2, sample_height=60, sample_width=90,
        text_embed_dim=DIM, time_embed_dim=8, time_position_encoding_type="3d_rope",
        timestep_activation_fn="silu", **more,
    )  # fmt: skip
    parts = {**_ONE_TEXT, "vae": _easy_vae(), "scheduler": euler(), "transformer": model}
    return pipe(kind, **parts)


def _easy_control() -> object:
    """diffusers 0.42.1 gives its own `encode_prompt` an argument that it does not take, so no call of it runs."""
    found = _easy(D.EasyAnimateControlPipeline, 12)
    own = found.encode_prompt  # type: ignore[attr-defined]

    def encode_prompt(text_encoder_index: int = 0, **given: object) -> object:
        return own(**given)

    found.encode_prompt = encode_prompt  # type: ignore[attr-defined]
    return found


def _control(videos: int) -> torch.Tensor:
    """Videos as numbers from 0 to 1, [videos, 3, frames, height, width]."""
    return torch.rand(videos, 3, 9, 48, 64, generator=torch.Generator().manual_seed(3))


def _easy_vae() -> object:
    found = made(
        D.AutoencoderKLMagvit, in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        down_block_types=("SpatialDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D",
                          "SpatialTemporalDownBlock3D"),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D",
                        "SpatialTemporalUpBlock3D"),
        layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    found.register_to_config(cache_mag_vae=False)  # which checkpoints have in their configuration
    return found


def _kandinsky5(kind: type, vae: object = None, **config: object) -> object:
    sizes = {
        "in_visual_dim": 16, "in_text_dim": DIM, "in_text_dim2": 8, "time_dim": 16, "out_visual_dim": 16,
        "patch_size": (1, 2, 2), "model_dim": 36, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2,
        "axes_dims": (12, 12, 12), "visual_cond": False, **config,
    }  # fmt: skip
    parts = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None, "vae": vae}
    return pipe(kind, **parts, scheduler=euler(shift=5.0), transformer=made(D.Kandinsky5Transformer3DModel, **sizes))


def _kandinsky5_call(prompts: int, **more: object) -> dict[str, object]:
    lengths = torch.arange(prompts + 1) * LENGTH
    return {
        **_GUIDED, "height": 128, "width": 128, "prompt": None, "prompt_embeds_qwen": embeds(prompts),
        "prompt_embeds_clip": pooled(prompts), "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": embeds(prompts, 9),
        "negative_prompt_embeds_clip": pooled(prompts, 9), "negative_prompt_cu_seqlens": lengths.clone(), **more,
    }  # fmt: skip


_OTHER_KANDINSKY = {"height": 128, "width": 256, "num_frames": 13}


class _Seeing(torch.nn.Module):
    """Stands for Motif-Video's text encoder, which is asked for its image encoder alone."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = siglip_parts()["image_encoder"]
        self.dtype, self.device = torch.float32, torch.device("cpu")


def _motif(kind: type, encoder: object = None) -> object:
    model = made(
        D.MotifVideoTransformer3DModel, in_channels=33, out_channels=16, num_layers=2, num_single_layers=2,
        num_decoder_layers=1, patch_size=2, text_embed_dim=DIM, image_embed_dim=16, rope_axes_dim=(12, 12, 12),
        enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True, **HEADS,
    )  # fmt: skip
    parts = {"scheduler": euler(), "transformer": model, "guider": ClassifierFreeGuidance(guidance_scale=3.0)}
    parts |= {**_ONE_TEXT, "vae": wan_vae(), "text_encoder": encoder}
    return pipe(kind, **parts, feature_extractor=siglip_parts()["feature_extractor"])


def _motif_call(prompts: int, **more: object) -> dict[str, object]:
    return {**VIDEO, **masked(prompts), **more}


CASES = (
    Case(
        "CosmosTextToWorldPipeline",
        lambda: _cosmos(D.CosmosTextToWorldPipeline, _edm(), extra_pos_embed_type="learnable"), _cosmos_call,
    ),
    Case(
        "CosmosVideoToWorldPipeline",
        lambda: _cosmos(
            D.CosmosVideoToWorldPipeline, _edm(), _cosmos_vae(), in_channels=5, extra_pos_embed_type="learnable"
        ),
        lambda n: _cosmos_call(n, image=picture()),
    ),
    Case(
        "Cosmos2TextToImagePipeline", lambda: _cosmos(D.Cosmos2TextToImagePipeline, euler(use_karras_sigmas=True)),
        lambda n: {k: v for k, v in _cosmos_call(n).items() if k != "num_frames"}, {"height": 64, "width": 48},
    ),
    Case(
        "Cosmos2VideoToWorldPipeline",
        lambda: _cosmos(D.Cosmos2VideoToWorldPipeline, euler(use_karras_sigmas=True), wan_vae(), **_COSMOS_VIDEO),
        lambda n: _cosmos_call(n, image=picture()),
    ),
    Case(
        "Cosmos2_5_PredictBasePipeline",
        lambda: _cosmos(D.Cosmos2_5_PredictBasePipeline, unipc(), wan_vae(), **_COSMOS_VIDEO), _cosmos_call,
    ),
    Case(
        "Cosmos2_5_PredictBasePipeline, from a video",
        lambda: _cosmos(D.Cosmos2_5_PredictBasePipeline, unipc(), wan_vae(), **_COSMOS_VIDEO),
        lambda n: _cosmos_call(n, video=clip()),
    ),
    Case(
        "Cosmos2_5_TransferPipeline", _cosmos_transfer,
        lambda n: _cosmos_call(n, controls=clip(), num_frames_per_chunk=9),
    ),
    Case(
        "SanaVideoPipeline", lambda: _sana(D.SanaVideoPipeline), _sana_call, {"height": 96, "width": 64, "frames": 13}
    ),
    Case(
        "SanaImageToVideoPipeline",
        lambda: _sana(D.SanaImageToVideoPipeline, wan_vae(), in_channels=16, out_channels=16),
        lambda n: _sana_call(n, image=picture(64, 96)), {"height": 96, "width": 64, "frames": 13},
    ),
    Case(
        "AllegroPipeline", _allegro,
        lambda n: {**_GUIDED, **masked(n), "negative_prompt": None, "height": 80, "width": 176, "num_frames": 8},
        {"height": 48, "width": 64, "num_frames": 12},
    ),
    Case("LattePipeline", _latte, _latte_call, {"height": 96, "width": 48}),
    Case(
        "EasyAnimatePipeline", lambda: _easy(D.EasyAnimatePipeline), lambda n: {**_GUIDED, **masked(n)},
        {"height": 64, "width": 48, "num_frames": 13},
    ),
    Case(
        "EasyAnimateControlPipeline", _easy_control,
        lambda n: {**_GUIDED, **masked(n), "control_video": _control(n)}, {"height": 64, "width": 48},
    ),
    Case(
        "EasyAnimateInpaintPipeline", lambda: _easy(D.EasyAnimateInpaintPipeline, 9, resize_inpaint_mask_directly=True),
        lambda n: {**_GUIDED, **masked(n), "video": _control(n), "mask_video": 255.0 * (_control(n)[:, :1] > 0.5)},
        {"height": 64, "width": 48},
    ),
    Case("Kandinsky5T2VPipeline", lambda: _kandinsky5(D.Kandinsky5T2VPipeline), _kandinsky5_call, _OTHER_KANDINSKY),
    Case(
        "Kandinsky5I2VPipeline",
        lambda: _kandinsky5(
            D.Kandinsky5I2VPipeline, hunyuan_vae(), in_visual_dim=4, out_visual_dim=4, visual_cond=True
        ),
        lambda n: _kandinsky5_call(n, image=picture(128, 128), num_frames=25), {"height": 128, "width": 256},
    ),
    Case("MotifVideoPipeline", lambda: _motif(D.MotifVideoPipeline), _motif_call, off=None),
    Case(
        "MotifVideoImage2VideoPipeline", lambda: _motif(D.MotifVideoImage2VideoPipeline, _Seeing()),
        lambda n: _motif_call(n, prompt=None, image=picture()), off=None,
    ),
)  # fmt: skip
