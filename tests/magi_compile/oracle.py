"""MotionCache on MAGI-1 in plain numpy, from its definition: which tokens of which chunk are computed at each step.

Shares no code with mccompile. d is the relative L1 change of the patch-embedded chunk since its last step; motion is
the change of the latents from frame to frame, per patch, scaled to [floor, 1] within each frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PATCH = 2


@dataclass(frozen=True)
class Rules:
    """The numbers of the definition; steps: a chunk's own steps."""

    steps: int
    warmup: int
    coarse: int
    threshold: float
    floor: float = 0.6


@dataclass
class Chunk:
    """What is remembered of one chunk."""

    features: Array  # [F, P, D] at its last step
    account: Array  # [F, P]


@dataclass
class Oracle:
    """Told every call in order, says which tokens it computes. kernel: [D, C, 2, 2], the patch embedding."""

    rules: Rules
    kernel: Array
    chunks: dict[int, Chunk] = field(default_factory=dict)
    last_frames: dict[int, Array] = field(default_factory=dict)  # [C, h, w] of each chunk at its last step

    def call(self, latents: dict[int, Array], steps: dict[int, int]) -> dict[int, NDArray[np.bool_]]:
        """latents [C, F, h, w] and own step of every active chunk -> bool [F, P] per chunk."""
        self.last_frames |= {chunk: x[:, -1] for chunk, x in latents.items()}
        return {chunk: self._chunk(chunk, x, steps[chunk]) for chunk, x in sorted(latents.items())}

    def _chunk(self, chunk: int, x: Array, step: int) -> NDArray[np.bool_]:
        rules, now = self.rules, embed(x, self.kernel)
        if step == 0:
            self.chunks[chunk] = Chunk(now, np.zeros(now.shape[:2]))
            return np.ones(now.shape[:2], bool)
        state = self.chunks[chunk]
        drift = np.abs(now - state.features).mean() / (np.abs(state.features).mean() + 1e-8)
        state.features = now
        if step < rules.warmup or step == rules.steps - 1:
            state.account[:] = 0
            return np.ones(now.shape[:2], bool)
        if step < rules.warmup + rules.coarse:
            state.account += drift
            assert np.ptp(state.account) == 0, "in the coarse phase all tokens of a chunk drift alike"
        else:
            state.account += drift * self._weights(chunk, x)
        computed = state.account >= rules.threshold
        state.account[computed] = 0
        return computed

    def _weights(self, chunk: int, x: Array) -> Array:
        frames = [self.last_frames[chunk - 1]] if chunk > 0 else []
        frames += [x[:, f] for f in range(x.shape[1])]
        weights = [] if chunk > 0 else [np.ones(x.shape[2] * x.shape[3] // PATCH**2)]
        for before, now in pairwise(frames):
            pixels = np.abs(now - before).mean(0)
            h, w = pixels.shape
            m = pixels.reshape(h // PATCH, PATCH, w // PATCH, PATCH).mean((1, 3)).ravel()
            weights.append(self.rules.floor + (1 - self.rules.floor) * (m - m.min()) / (m.max() - m.min() + 1e-8))
        return np.stack(weights)


def embed(x: Array, kernel: Array) -> Array:
    """[C, F, h, w] -> [F, P, D]."""
    c, f, h, w = x.shape
    patches = x.reshape(c, f, h // PATCH, PATCH, w // PATCH, PATCH).transpose(1, 2, 4, 0, 3, 5)
    return patches.reshape(f, -1, c * PATCH**2) @ kernel.reshape(kernel.shape[0], -1).T
