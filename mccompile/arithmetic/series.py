"""Chebyshev series fitted to values at some steps of a run: what each of the values is worth at another step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.polynomial import chebyshev


@lru_cache(maxsize=4096)
def spectral_weights(
    steps: tuple[int, ...], ahead: int, of: int, degree: int, ridge: float
) -> tuple[np.float32, ...]:
    """What the values at `steps` are worth in the fit's value at step `ahead`, one number each, in their order.

    of: the steps of the run, whose beginning and end are -1 and 1 of the series. degree: the highest of its terms.
    ridge: how many times the sum of squared coefficients is added to the sum of squared errors, above 0. After Spectrum
    (arXiv 2603.01623 and its code): x (X' X + ridge I)^-1 X', X the terms at `steps` and x those at `ahead`. It is
    computed in float64, and each weight is rounded once.
    """
    terms = _terms(steps, of, degree)
    normal = terms.T @ terms + ridge * np.eye(degree + 1)
    weights = terms @ np.linalg.solve(normal, _terms((ahead,), of, degree)[0])
    return tuple(np.float32(weight) for weight in weights)


def _terms(steps: Sequence[int], of: int, degree: int) -> np.ndarray:
    """T_0 .. T_degree at each step, [steps, degree + 1] float64."""
    places = (np.asarray(steps, np.float64) - of / 2) * 2 / of
    return chebyshev.chebvander(places, degree)
