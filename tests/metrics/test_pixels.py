"""PSNR and SSIM against their definitions, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mccompile.metrics.pixels import psnr, ssim

RNG = np.random.default_rng(0)


def videos(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    one = RNG.random(shape)
    return one, np.clip(one + RNG.normal(0, 0.1, shape), 0, 1)


def test_psnr_of_known_errors() -> None:
    black, grey = np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), 0.1)
    assert psnr(grey, black) == pytest.approx(20.0)
    assert psnr(black, black) == math.inf
    assert psnr(grey.astype(np.float32), black.astype(np.float32)) == pytest.approx(20.0, abs=1e-5)


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Every window of every frame and channel, one after the other."""
    offset = np.arange(11) - 5
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    values = []
    for f in range(x.shape[0]):
        for c in range(x.shape[3]):
            for i in range(x.shape[1] - 10):
                for j in range(x.shape[2] - 10):
                    a, b = x[f, i : i + 11, j : j + 11, c], y[f, i : i + 11, j : j + 11, c]
                    ma, mb = (weight * a).sum(), (weight * b).sum()
                    va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                    both = (weight * (a - ma) * (b - mb)).sum()
                    top = (2 * ma * mb + 0.01**2) * (2 * both + 0.03**2)
                    values.append(top / ((ma**2 + mb**2 + 0.01**2) * (va + vb + 0.03**2)))
    return float(np.mean(values))


def test_ssim_is_the_mean_over_windows() -> None:
    x, y = videos(2, 14, 16, 3)
    assert ssim(x, y) == pytest.approx(plain_ssim(x, y), abs=1e-12)
    assert ssim(x, x) == pytest.approx(1.0)
    assert ssim(x, y) == pytest.approx(ssim(y, x))
    assert ssim(x, y) < ssim(x, 0.5 * (x + y)) < 1.0


def test_ssim_of_small_videos() -> None:
    x, y = videos(1, 4, 4, 1)
    assert 0 < ssim(x, y) < 1


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (3, 4, 4), (0, 4, 4, 3)])
def test_other_forms_are_refused(measure, shape) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="two videos"):
        measure(np.zeros((3, 4, 4, 3)) if shape == (2, 4, 4, 3) else np.zeros(shape), np.zeros(shape))
