"""Weights of a fitted series against the fit itself: what they make of values is what the fitted series says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import Chebyshev, Polynomial, chebyshev

from mccompile.arithmetic.series import spectral_weights

OF, STEPS = 20, (17, 12, 9, 4, 1)


def place(step: float) -> float:
    """From 0 to 20 steps, -1 to 1."""
    return step / 10 - 1


@pytest.mark.parametrize("degree", [0, 1, 2, 4])
@pytest.mark.parametrize("ridge", [0.01, 0.5])
@pytest.mark.parametrize("ahead", [0, 18, 20])
def test_the_weights_are_those_of_the_least_squares(degree: int, ridge: float, ahead: int) -> None:
    """A ridge is a row of zeros for each coefficient, under its root."""
    terms = np.stack([[Chebyshev.basis(k)(place(step)) for k in range(degree + 1)] for step in STEPS])
    rows = np.concatenate([terms, np.sqrt(ridge) * np.eye(degree + 1)])
    for number in range(len(STEPS)):
        values = np.eye(len(STEPS))[number]
        fitted, *_ = np.linalg.lstsq(rows, np.concatenate([values, np.zeros(degree + 1)]), rcond=None)
        weight = spectral_weights(STEPS, ahead, OF, degree, ridge)[number]
        assert type(weight) is np.float32
        assert weight == pytest.approx(chebyshev.chebval(place(ahead), fitted), abs=1e-6)


def test_a_polynomial_is_continued() -> None:
    curve = Polynomial((1.0, -0.3, 0.02))
    weights = spectral_weights(STEPS, 19, OF, 2, 1e-9)
    assert sum(w * curve(step) for w, step in zip(weights, STEPS, strict=True)) == pytest.approx(curve(19), abs=1e-4)
