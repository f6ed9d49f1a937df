"""What tiny pipelines are made of: random weights, texts, an image, encoders of images, VAEs, schedulers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import nn

Arguments = Mapping[str, object]
DIM, LENGTH = 16, 7  # of a text: channels, tokens
HEADS = {"num_attention_heads": 2, "attention_head_dim": 36}
VIDEO = {"height": 48, "width": 64, "num_frames": 9, "num_inference_steps": 4, "output_type": "latent"}
SMALLER = {"height": 64, "width": 48, "num_frames": 13}  # another size than VIDEO's
IMAGE = {"height": 96, "width": 128, "num_inference_steps": 4, "output_type": "latent"}
IMAGE_SMALLER = {"height": 128, "width": 64}


@dataclass(frozen=True, slots=True)
class Case:
    """One pipeline with random weights, and how it is called.

    make: the pipeline. call: its arguments for so many prompts. other: what another size changes. off: what switches
    guidance off. Without one, the pipeline has no such thing.
    """

    name: str
    make: Callable[[], object]
    call: Callable[[int], dict[str, object]]
    other: Arguments = field(default_factory=lambda: dict(SMALLER))
    off: Arguments | None = field(default_factory=lambda: {"guidance_scale": 1.0})


def rand(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with noise added to every weight, so that nothing is trivially zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def made(kind: Callable[..., nn.Module], seed: int = 0, **config: object) -> nn.Module:
    """A model of random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return rand(kind(**config), seed)


def pipe(kind: Callable[..., object], **parts: object) -> object:
    """The pipeline of these parts, without a progress bar; a class's parts that are not given are None."""
    made = kind(**parts)
    made.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    return made


def embeds(prompts: int, seed: int = 0, length: int = LENGTH, dim: int = DIM) -> torch.Tensor:
    """Texts [prompts, length, dim], all different."""
    return torch.randn(prompts, length, dim, generator=torch.Generator().manual_seed(seed))


def pooled(prompts: int, seed: int = 0) -> torch.Tensor:
    """Pooled texts [prompts, 8]."""
    return torch.randn(prompts, 8, generator=torch.Generator().manual_seed(100 + seed))


def texts(prompts: int, **more: object) -> dict[str, object]:
    """Prompts and negative prompts as embeddings."""
    return {
        "prompt": None, "prompt_embeds": embeds(prompts), "negative_prompt_embeds": embeds(prompts, 9), **more
    }  # fmt: skip


def masked(prompts: int, dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """Prompts as embeddings with masks."""
    mask = torch.ones(prompts, LENGTH, dtype=dtype)
    return texts(prompts, prompt_attention_mask=mask, negative_prompt_attention_mask=mask.clone())


def picture(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """A random image."""
    pixels = np.random.RandomState(seed).rand(height, width, 3) * 255
    return Image.fromarray(pixels.astype("uint8"))


def clip(frames: int = 9) -> list[Image.Image]:
    """A video of random images."""
    return [picture(seed=i) for i in range(frames)]


def unipc(shift: float = 3.0) -> object:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def euler(**config: object) -> object:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def wan_vae() -> nn.Module:
    return made(
        diffusers.AutoencoderKLWan, base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip


def hunyuan_vae() -> nn.Module:
    return made(
        diffusers.AutoencoderKLHunyuanVideo, in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, spatial_compression_ratio=8,
        temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip


def cogvideox_vae(channels: int = 4) -> nn.Module:
    return made(
        diffusers.AutoencoderKLCogVideoX, in_channels=3, out_channels=3, latent_channels=channels,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip


def image_vae(channels: int = 4, scale: int = 4) -> nn.Module:
    """A VAE of images that makes `2 ** (scale - 1)` pixels one place."""
    return made(
        diffusers.AutoencoderKL, sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,) * scale,
        down_block_types=("DownEncoderBlock2D",) * scale, up_block_types=("UpDecoderBlock2D",) * scale,
        layers_per_block=1, latent_channels=channels, norm_num_groups=1, use_quant_conv=False,
        use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip


@cache
def _clip_parts() -> tuple[object, object]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=20, projection_dim=4, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        intermediate_size=16, patch_size=16,
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):
        return made(CLIPVisionModel, config=config), CLIPImageProcessor(crop_size=32, size=32)


def clip_parts() -> dict[str, object]:
    """An image encoder as Wan's pipelines take it."""
    encoder, processor = _clip_parts()
    return {"image_encoder": encoder, "image_processor": processor}


@cache
def siglip_parts() -> dict[str, object]:
    """An image encoder as Hunyuan's pipelines take it."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, intermediate_size=16, patch_size=16
    )
    with contextlib.redirect_stderr(io.StringIO()):
        processor = SiglipImageProcessor(size={"height": 32, "width": 32})
    return {"image_encoder": made(SiglipVisionModel, config=config), "feature_extractor": processor}
