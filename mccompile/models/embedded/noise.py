"""Noise levels of diffusion forcing: which chunk is how far along when a training sample is drawn.

Progress p of a chunk runs from 0 (pure noise) to 1 (clean) in equal steps of inference; its noise level is
`sigma = shift (1 - p) / (1 + (shift - 1) (1 - p))`, as in the flow-matching schedulers of diffusers. Training sees
x = (1 - sigma) x0 + sigma noise, target noise - x0, timestep 1000 sigma.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

STAIRCASE_SHARE: Final = 0.55
CLEAN_PREFIX_SHARE: Final = 0.25
"""The remaining share draws every chunk on its own (Diffusion Forcing, arXiv 2407.01392)."""


@dataclass(frozen=True, slots=True)
class Levels:
    """Per sample and chunk [B, K]: noise level, and whether the loss counts it (neither clean nor untouched noise)."""

    sigma: NDArray[np.float32]
    counted: NDArray[np.bool_]


def sample_levels(rng: np.random.Generator, batch: int, chunks: int, shift: float) -> Levels:
    """Noise levels as asynchronous inference meets them, mixed with clean histories and independent ones.

    Staircase: chunk k lags chunk 0 by k times a random part of the schedule (0 to 0.3), so an `ar_step` of up to 15
    of 50 steps is covered. Clean prefix: earlier chunks are finished and one is under way, as in chunk-by-chunk
    generation; the chunks behind it wait in noise.
    """
    kind = rng.random(batch)
    index = np.arange(chunks)
    lag = rng.uniform(0.0, 0.3, (batch, 1))
    staircase = rng.random((batch, 1)) * (1.0 + lag * (chunks - 1)) - lag * index
    current = rng.integers(0, chunks, (batch, 1))
    prefix = np.where(index < current, 1.0, np.where(index == current, rng.random((batch, 1)), 0.0))
    own = rng.random((batch, chunks))
    picks = [kind < STAIRCASE_SHARE, kind < STAIRCASE_SHARE + CLEAN_PREFIX_SHARE]
    progress = np.select([pick[:, None] for pick in picks], [staircase, prefix], own)
    counted = (progress > 0.0) & (progress < 1.0)
    rest = 1.0 - np.clip(progress, 0.0, 1.0)
    sigma = shift * rest / (1.0 + (shift - 1.0) * rest)
    return Levels(sigma.astype(np.float32), counted)
