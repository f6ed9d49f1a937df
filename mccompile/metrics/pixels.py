"""PSNR, SSIM and sharpness of frames [F, H, W, C] in 0..1, by scikit-image."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from skimage.measure import blur_effect
from skimage.metrics import mean_squared_error, structural_similarity

_WINDOW, _SIGMA = 11, 1.5


def psnr(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB over all values; inf where the videos are equal. Raises ValueError."""
    same_form(video, reference)
    return in_decibel(float(mean_squared_error(reference, video)))


def psnr_per_frame(video: NDArray[np.floating], reference: NDArray[np.floating]) -> tuple[float, ...]:
    """PSNR of each frame in dB. Raises ValueError where the forms differ."""
    same_form(video, reference)
    return tuple(in_decibel(float(mean_squared_error(b, a))) for a, b in zip(video, reference, strict=True))


def in_decibel(error: float) -> float:
    """A mean squared error of values in 0..1 as PSNR; inf for none."""
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def ssim(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al., 2004): mean over frames and channels, Gaussian window 11, sigma 1.5.

    Windows that reach over the border are left out, as in the original code; a video smaller than the window is
    compared in flat windows of the odd size that fits. Raises ValueError where the forms differ.
    """
    same_form(video, reference)
    side = min(video.shape[1:3])
    window: dict[str, object] = {"gaussian_weights": True, "sigma": _SIGMA}
    if side < _WINDOW:
        window = {"win_size": side - 1 + side % 2}
    frames = zip(video.astype(np.float64), reference.astype(np.float64), strict=True)
    values = [
        structural_similarity(b, a, data_range=1.0, channel_axis=-1, use_sample_covariance=False, **window)
        for a, b in frames
    ]
    return float(np.mean(values))


def sharpness(video: NDArray[np.floating]) -> float:
    """1 minus the perceptual blur (Crete et al., 2007), mean over frames: 0 is blurred, 1 is sharp."""
    return float(np.mean([1.0 - blur_effect(frame.astype(np.float64), channel_axis=-1) for frame in video]))


def same_form(video: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
    """Raises ValueError unless both are [frames, height, width, channels] of one size."""
    if video.shape != reference.shape or video.ndim != 4 or 0 in video.shape:
        raise ValueError(f"two videos [frames, height, width, channels], got {video.shape} and {reference.shape}")
