"""What depends on motion: regions that the reference moves or leaves alone, and flicker that it does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mccompile.metrics.pixels import in_decibel, same_form

MOVES = 5.0 / 255.0  # of the largest change of a channel from frame to frame; less is codec noise and grain


def moving(reference: NDArray[np.floating], moves: float = MOVES) -> NDArray[np.bool_]:
    """Which pixels [F, H, W] of the reference change by more than `moves` from the frame before or to the next one."""
    changes = np.abs(np.diff(reference, axis=0)).max(-1) > moves
    found = np.zeros(reference.shape[:3], dtype=np.bool_)
    found[1:] |= changes
    found[:-1] |= changes
    return found


def psnr_where(video: NDArray[np.floating], reference: NDArray[np.floating], where: NDArray[np.bool_]) -> float | None:
    """PSNR in dB over the pixels `where` [F, H, W]; inf where they are equal, None where there are none."""
    same_form(video, reference)
    if not where.any():
        return None
    error = video[where].astype(np.float64) - reference[where].astype(np.float64)
    return in_decibel(float(np.mean(error**2)))


def flicker(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """How far the changes from frame to frame are from the reference's: the mean difference, in levels of 0..255.

    0 for a video that changes as the reference does, and for one of a single frame.
    """
    same_form(video, reference)
    if len(video) < 2:
        return 0.0
    own, wanted = (np.diff(v.astype(np.float64), axis=0) for v in (video, reference))
    return float(np.abs(own - wanted).mean() * 255.0)
