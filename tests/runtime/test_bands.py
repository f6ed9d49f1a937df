"""Low and high frequencies of a kept result, against the transform of each frame written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mccompile.runtime.bands import BandWeights, weighed


def expected(value: np.ndarray, low: np.ndarray, high: np.ndarray, waves: int) -> np.ndarray:
    """Each frame by itself. low, high: [B, G]; each chunk has as many frames. waves: whole waves that are still low."""
    made = np.zeros_like(value)
    samples, channels, frames, height, width = value.shape
    for b, c, f in np.ndindex(samples, channels, frames):
        chunk = f // (frames // low.shape[1])
        spectrum, within = np.fft.fft2(value[b, c, f]), np.zeros((height, width))
        for row, column in np.ndindex(height, width):
            one, two = min(row, height - row), min(column, width - column)
            within[row, column] = one * one + two * two <= waves * waves
        below = np.fft.ifft2(spectrum * within).real
        made[b, c, f] = below * low[b, chunk] + (value[b, c, f] - below) * high[b, chunk]
    return made


@pytest.mark.parametrize(
    ("size", "radius", "waves"),
    [((6, 8), 0.4, 2), ((8, 6), 0.5, 3), ((15, 16), 0.2, 3), ((5, 7), 0.0, 0), ((5, 5), 0.39, 1)],  # 1.95, rounded down
)
def test_frequencies_of_each_frame_are_weighed_by_its_chunk(size: tuple[int, int], radius: float, waves: int) -> None:
    drawn = np.random.default_rng(0)
    value = drawn.standard_normal((2, 3, 4, *size)).astype(np.float32)
    low, high = (drawn.uniform(0.5, 2.0, (2, 2)).astype(np.float32) for _ in range(2))
    found = weighed(torch.from_numpy(value), BandWeights(low, high, radius))
    np.testing.assert_allclose(found.numpy(), expected(value, low, high, waves), atol=1e-5)


def test_two_weights_of_1_give_what_was_kept_in_its_dtype() -> None:
    value = torch.randn(1, 2, 2, 6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    one = np.ones((1, 1), np.float32)
    found = weighed(value, BandWeights(one, one, 0.3))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, value, rtol=0, atol=1e-2)
