"""Fits: known polynomials are found again, worthless ones are told, and nothing negative is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mccompile.studio.calibrate.fitting import Moves, fit, r_squared


def prompts(of: Callable[[np.ndarray], np.ndarray], noise: float, count: int = 4, seed: int = 0) -> list[Moves]:
    generator = np.random.default_rng(seed)
    signals = [generator.uniform(0.02, 0.4, 60) for _ in range(count)]
    return [Moves(x, np.abs(of(x) + noise * generator.standard_normal(x.size))) for x in signals]


@pytest.mark.parametrize(
    ("coefficients", "degree"), [((0.7, 0.0), 1), ((3.0, 0.0, 0.1), 2), ((-8.0, 3.0, 1.0, 0.05), 3)]
)
def test_a_polynomial_is_found_again(coefficients: tuple[float, ...], degree: int) -> None:
    *seen, out = prompts(lambda x: np.polyval(coefficients, x), 1e-4)
    found = fit(seen, [out])
    assert found.degree >= degree
    x = np.linspace(0.02, 0.4, 50)
    assert np.abs(np.polyval(found.coefficients, x) - np.polyval(coefficients, x)).max() < 2e-3
    assert found.r2 > 0.99
    assert found.fitted == (min(p.signal.min() for p in (*seen, out)), max(p.signal.max() for p in (*seen, out)))


def test_noise_does_not_raise_the_degree() -> None:
    *seen, out = prompts(lambda x: 0.7 * x, 0.02, count=6)
    assert fit(seen, [out]).degree == 1


def test_what_does_not_follow_the_signal_has_no_r2() -> None:
    *seen, out = prompts(lambda x: 0.3 + 0 * x, 0.1)
    assert fit(seen, [out]).r2 < 0.2


@given(st.integers(0, 1000), st.floats(-2, 2), st.floats(-2, 2))
def test_a_fit_is_a_distance_wherever_it_was_tried(seed: int, a: float, b: float) -> None:
    *seen, out = prompts(lambda x: np.abs(a * x**2 + b * x), 0.05, seed=seed)
    found = fit(seen, [out])
    values = np.polyval(np.float32(found.coefficients), np.linspace(0, found.fitted[1], 400).astype(np.float32))
    assert values.min() >= -1e-6


def test_r2_is_that_of_numpy_by_hand() -> None:
    pairs = [Moves(np.array([1.0, 2.0]), np.array([1.0, 3.0])), Moves(np.array([3.0]), np.array([2.0]))]
    assert r_squared((1.0, 0.0), pairs) == pytest.approx(1 - 2 / 2)
