"""How near a video is to another: PSNR and SSIM, on frames [F, H, W, C] in 0..1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB over all values; inf where the videos are equal. Raises ValueError."""
    _same_form(video, reference)
    error = float(np.mean((video.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else -10.0 * math.log10(error)


def ssim(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al., 2004): mean over frames and channels, Gaussian window 11, sigma 1.5.

    Windows that reach over the border are left out, as in the original code; a video smaller than the window is
    compared as one window. Raises ValueError where the forms differ.
    """
    _same_form(video, reference)
    x, y = video.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    both = _blurred(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + _C1) * (2 * both + _C2)
    return float(np.mean(similar / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))))


def _blurred(video: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means over the window, along height and width."""
    for axis in (1, 2):
        size = min(_WINDOW, video.shape[axis])
        offset = np.arange(size) - (size - 1) / 2
        weights = np.exp(-(offset**2) / (2 * _SIGMA**2))
        windows = np.lib.stride_tricks.sliding_window_view(video, size, axis)
        video = windows @ (weights / weights.sum())
    return video


def _same_form(video: NDArray[np.floating], reference: NDArray[np.floating]) -> None:
    if video.shape != reference.shape or video.ndim != 4 or 0 in video.shape:
        raise ValueError(f"two videos [frames, height, width, channels], got {video.shape} and {reference.shape}")
