"""Low and high frequencies of what is kept of the whole model, weighted where it stands in (FasterCache).

Frequencies are those along rows and columns of each latent frame, and a circle around none of them is low. The part
outside is what the low ones leave, so that two weights of 1 give what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mccompile import ir
from mccompile.language.walk import of_bands
from mccompile.policy.bind import BoundPolicy
from mccompile.runtime.clock import Moment
from mccompile.runtime.forecast import Weighing
from mccompile.runtime.store import History
from mccompile.runtime.upload import upload

_ROUNDING = 1e-5  # of a float32 share of a side: 20% of 15 places are 3, and not 2.9999998


@dataclass(frozen=True, slots=True)
class BandWeights:
    """What the low and the high frequencies of each chunk's kept result are worth, float32 [B, G]; radius: a share."""

    low: np.ndarray
    high: np.ndarray
    radius: float


def band_weights(bands: ir.Bands, bound: BoundPolicy, moment: Moment, history: History, batch: int) -> BandWeights:
    """The weights of a call. history: of the whole model. Raises NoForecast (MC0620) for what is no finite number."""
    found = np.ones((2, batch, len(moment.chunks)), np.float32)
    for number, forecast in enumerate(of_bands(bands)):
        weighing = Weighing(forecast, bound, moment.grid, 1)
        for b in range(batch):
            for g, time in enumerate(moment.chunks):
                if time.state == "active":
                    recent = history.recent_of(b, time)
                    found[number, b, g] = weighing.of_chunk(time.step, recent, {})[0].flat[0]
    return BandWeights(found[0], found[1], float(bound.number(bands.radius)))


def weighed(value: torch.Tensor, weights: BandWeights) -> torch.Tensor:
    """What stands in for a kept result [B, C, frames, height, width], in its dtype; the frames of a chunk are alike."""
    frames, height, width = value.shape[2:]
    low, high = (_along(w, frames, value.device) for w in (weights.low, weights.high))
    wide = value.float()
    within = _circle(height, width, int(weights.radius * min(height, width) + _ROUNDING), value.device)
    below = torch.fft.ifft2(torch.fft.fft2(wide) * within).real
    return (below * low + (wide - below) * high).to(value.dtype)


def _along(weight: np.ndarray, frames: int, device: torch.device) -> torch.Tensor:
    """[B, G] as [B, 1, frames, 1, 1]."""
    of_frames = np.repeat(weight, frames // weight.shape[1], 1)
    return upload(np.ascontiguousarray(of_frames), device)[:, None, :, None, None]


def _circle(height: int, width: int, radius: int, device: torch.device) -> torch.Tensor:
    """Which frequencies of a frame are low, [height, width]: at most `radius` whole waves across it."""
    waves = (torch.fft.fftfreq(n, 1 / n, device=device).round() for n in (height, width))
    rows, columns = waves
    return (rows[:, None] ** 2 + columns[None] ** 2 <= radius**2).float()
