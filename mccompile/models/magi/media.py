"""Frames in and out: images, lists, arrays and tensors to pixels in -1..1, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

from mccompile.models.magi.errors import MagiInputError

Frames: TypeAlias = Image.Image | Sequence[Image.Image] | np.ndarray | Tensor
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class MagiPipelineOutput(BaseOutput):
    """frames: np float32 [1, F, H, W, 3] in 0..1, pt [1, F, 3, H, W], pil a list of lists, or latents."""

    frames: object


def _images(frames: Frames) -> list[Image.Image]:
    if isinstance(frames, Image.Image):
        return [frames]
    if isinstance(frames, np.ndarray):
        if frames.dtype != np.uint8 or frames.shape[-1] != 3 or frames.ndim not in (3, 4):
            raise MagiInputError("frames", f"{frames.dtype} {frames.shape}", "give uint8 [H, W, 3] or [F, H, W, 3]")
        return [Image.fromarray(f) for f in (frames if frames.ndim == 4 else frames[None])]
    if not isinstance(frames, Sequence) or not frames or not all(isinstance(f, Image.Image) for f in frames):
        raise MagiInputError("frames", type(frames).__name__, "give PIL images, a uint8 array, or a tensor in -1..1")
    return list(frames)


def to_frames(frames: Frames, height: int, width: int) -> Tensor:
    """float32 [1, 3, F, height, width] in -1..1. Images are resized to exactly that size, without keeping the aspect.

    A tensor is taken as it is: [1, 3, F, height, width] in -1..1. Raises MagiInputError (MC0724).
    """
    if isinstance(frames, Tensor):
        want = (1, 3, height, width)
        if frames.dim() != 5 or (*frames.shape[:2], *frames.shape[3:]) != want or not frames.is_floating_point():
            given = f"{frames.dtype} {list(frames.shape)}"
            raise MagiInputError("frames", given, f"give float [1, 3, F, {height}, {width}]")
        return frames.float()
    sized = [im.convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for im in _images(frames)]
    pixels = torch.from_numpy(np.stack([np.asarray(im) for im in sized]))
    return (pixels.float() / 127.5 - 1).permute(3, 0, 1, 2)[None]


def to_output(video: Tensor, output_type: OutputType) -> object:
    """video float32 [1, 3, F, H, W] in -1..1 -> the asked form of MagiPipelineOutput.frames."""
    return VideoProcessor().postprocess_video(video, output_type=output_type)
