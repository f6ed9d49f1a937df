"""Least-squares polynomials from a distance to a distance; their degree is chosen by leaving prompts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
HIGHEST_DEGREE = 4  # of the published fits (TeaCache)
_LOOKED_AT = 400  # arguments at which a fit is tried for its sign


@dataclass(frozen=True, slots=True)
class Moves:
    """One prompt: how far a signal moved, and how far the output moved with it."""

    signal: Numbers
    output: Numbers


@dataclass(frozen=True, slots=True)
class Fit:
    """coefficients: highest power first. fitted: the lowest and the highest argument that was seen.

    r2: of the prompts that it was not fitted on; 1 is exact, and 0 is no better than their mean. pairs: how many it was
    fitted on.
    """

    coefficients: tuple[float, ...]
    fitted: tuple[float, float]
    r2: float
    pairs: int

    @property
    def degree(self) -> int:
        """The highest power."""
        return len(self.coefficients) - 1


def fit(seen: Sequence[Moves], held_out: Sequence[Moves]) -> Fit:
    """The simplest polynomial that predicts prompts left out as well as any, up to one standard error, or to float32.

    Candidates have degrees 1 to 4 and go through 0 or not; one that is negative between 0 and the highest argument is
    no distance, and is left out. At least two prompts are seen, and at least one is held out.
    """
    high = max(float(p.signal.max()) for p in (*seen, *held_out))
    low = min(float(p.signal.min()) for p in (*seen, *held_out))
    made = []
    for powers in _candidates():
        coefficients = _least_squares(seen, powers, high)
        if _is_distance(coefficients, high):
            made.append((powers, coefficients, _left_out(seen, powers, high)))
    best = min(made, key=lambda m: float(m[2].mean()))
    allowed = float(best[2].mean() + best[2].std(ddof=1) / np.sqrt(len(best[2])))
    rounding = float(np.finfo(np.float32).eps) * max(float(p.output.max()) for p in seen)  # no run can show less
    powers, coefficients, _ = next(m for m in made if float(m[2].mean()) <= max(allowed, rounding**2))
    rounded = tuple(float(f"{c:.9g}") for c in coefficients)
    count = sum(len(p.signal) for p in seen)
    return Fit(rounded, (low, high), r_squared(rounded, held_out), count)


def r_squared(coefficients: Sequence[float], pairs: Sequence[Moves]) -> float:
    """The share of the output's variance that the polynomial explains, over all pairs."""
    output = np.concatenate([p.output for p in pairs])
    missed = np.concatenate([p.output - np.polyval(coefficients, p.signal) for p in pairs])
    return float(1 - (missed**2).sum() / max(float(((output - output.mean()) ** 2).sum()), 1e-300))


def _candidates() -> list[tuple[int, ...]]:
    """The powers of each candidate, the simpler ones first."""
    found = [powers for d in range(1, HIGHEST_DEGREE + 1) for powers in (tuple(range(1, d + 1)), tuple(range(d + 1)))]
    return sorted(found, key=lambda powers: (len(powers), max(powers)))


def _least_squares(pairs: Sequence[Moves], powers: tuple[int, ...], high: float) -> Numbers:
    """Coefficients, highest power first. The arguments are scaled to 0..1 in between, so that powers stay apart."""
    scale = max(high, 1e-12)
    x = np.concatenate([p.signal for p in pairs]) / scale
    y = np.concatenate([p.output for p in pairs])
    solved, *_ = np.linalg.lstsq(np.stack([x**p for p in powers], 1), y, rcond=None)
    coefficients = np.zeros(max(powers) + 1)
    for power, value in zip(powers, solved, strict=True):
        coefficients[max(powers) - power] = value / scale**power
    return coefficients


def _left_out(pairs: Sequence[Moves], powers: tuple[int, ...], high: float) -> Numbers:
    """The mean squared error on each prompt, of a fit on all others."""
    errors = []
    for i, out in enumerate(pairs):
        rest = [p for j, p in enumerate(pairs) if j != i]
        errors.append(((out.output - np.polyval(_least_squares(rest, powers, high), out.signal)) ** 2).mean())
    return np.array(errors)


def _is_distance(coefficients: Numbers, high: float) -> bool:
    """Not negative from 0 to the highest argument, in float32 too."""
    x = np.linspace(0, high, _LOOKED_AT)
    return bool((np.polyval(coefficients, x) >= 0).all())
