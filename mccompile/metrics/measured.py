"""All measures of a video against a reference, as one result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mccompile.metrics.clips import Clip
from mccompile.metrics.errors import VideosDiffer
from mccompile.metrics.motion import flicker, moving, psnr_where
from mccompile.metrics.perceived import lpips, ms_ssim
from mccompile.metrics.pixels import psnr, psnr_per_frame, sharpness, ssim


@dataclass(frozen=True, slots=True)
class Measured:
    """A video against its reference.

    psnr: of all values, per_frame: of each frame, static and moving: of the pixels that the reference leaves alone or
    moves (None where there are none), all in dB, inf where equal. ssim, ms_ssim: 1 where equal (ms_ssim None where
    frames are too small). lpips: 0 where equal, None where not asked for. flicker: levels of 0..255. sharpness and
    reference_sharpness: 0 blurred, 1 sharp. moving_share: of the pixels, 0..1.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    lpips: float | None
    flicker: float
    static: float | None
    moving: float | None
    moving_share: float
    sharpness: float
    reference_sharpness: float
    per_frame: tuple[float, ...]

    @property
    def worst(self) -> int:
        """The frame with the least PSNR; the first of several."""
        return self.per_frame.index(min(self.per_frame))


def measure(video: NDArray[np.floating], reference: NDArray[np.floating], with_lpips: bool = False) -> Measured:
    """Compares `video` with `reference`, both [F, H, W, 3] in 0..1.

    Raises ValueError where the forms differ, MetricUnavailable (MC0733) where LPIPS is asked for and cannot be had.
    """
    learned = lpips(video, reference) if with_lpips else None
    moves = moving(reference)
    return Measured(
        psnr=psnr(video, reference),
        ssim=ssim(video, reference),
        ms_ssim=ms_ssim(video, reference),
        lpips=learned,
        flicker=flicker(video, reference),
        static=psnr_where(video, reference, ~moves),
        moving=psnr_where(video, reference, moves),
        moving_share=float(moves.mean()),
        sharpness=sharpness(video),
        reference_sharpness=sharpness(reference),
        per_frame=psnr_per_frame(video, reference),
    )


def measure_clips(video: Clip, reference: Clip, with_lpips: bool = False) -> Measured:
    """`measure` of two clips. Raises VideosDiffer (MC0732) where size, length or rate differ."""
    sizes = [f"{clip.frames.shape[2]}x{clip.frames.shape[1]}" for clip in (reference, video)]
    lengths = [f"{len(clip.frames)} frames" for clip in (reference, video)]
    for what, (first, second) in (("size", sizes), ("length", lengths)):
        if first != second:
            raise VideosDiffer(what, first, second)
    if reference.rate is not None and video.rate is not None and reference.rate != video.rate:
        raise VideosDiffer("rate", *(f"{float(rate):g} frames per second" for rate in (reference.rate, video.rate)))
    return measure(video.frames, reference.frames, with_lpips)
