"""MS-SSIM and LPIPS of frames [F, H, W, 3] in 0..1, by torchmetrics, imported when one is asked for."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from mccompile.metrics.errors import MetricUnavailable
from mccompile.metrics.pixels import same_form

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales (Wang et al., 2003)
_WINDOW = 11
_BATCH = 8  # frames at once


def scales_of(height: int, width: int) -> int:
    """How many of the five scales fit a frame: each halves it, and the window must fit the smallest.

    torchmetrics has a bound of its own beside that one: the side by (scales - 1) squared.
    """
    side = min(height, width)
    fits = (n for n in range(len(BETAS), 0, -1) if side // max(2 ** (n - 1), (n - 1) ** 2) >= _WINDOW)
    return next(fits, 0)


def ms_ssim(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float | None:
    """Multi-scale structural similarity, mean over frames.

    A frame that is too small for five scales is compared on those that fit (`scales_of`), their weights scaled to
    sum 1; None where not even one fits. Raises ValueError where the forms differ.
    """
    same_form(video, reference)
    scales = scales_of(*video.shape[1:3])
    if not scales:
        return None
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    betas = tuple(beta / sum(BETAS[:scales]) for beta in BETAS[:scales])
    values = [
        measure(a, b, data_range=1.0, betas=betas, normalize="relu", reduction="none")
        for a, b in _batches(video, reference)
    ]
    return float(torch.cat([v.reshape(-1) for v in values]).mean())


def lpips(video: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Learned perceptual distance (AlexNet), mean over frames. Raises MetricUnavailable (MC0733) and ValueError."""
    same_form(video, reference)
    try:
        import torchvision  # noqa: F401  # torchmetrics asks whether it is installed, not whether it can be imported
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as measure

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's own, about how its weights are asked for
            values = [
                float(measure(a, b, net_type="alex", normalize=True, reduction="sum"))
                for a, b in _batches(video, reference)
            ]
    except (ImportError, RuntimeError, OSError) as error:
        raise MetricUnavailable("LPIPS", str(error).strip().splitlines()[0]) from error
    return sum(values) / len(video)


def _batches(video: NDArray[np.floating], reference: NDArray[np.floating]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of [f, 3, H, W], a few frames each."""
    one, other = (
        torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)).permute(0, 3, 1, 2) for v in (video, reference)
    )
    return list(zip(one.split(_BATCH), other.split(_BATCH), strict=True))
