"""What the decisions of a request were made by, as the decision graph has measured it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mccompile import ir
from mccompile.lowering.measured import Row
from mccompile.policy.influence import negative_fit

ODD = "a signal is not finite"  # why a chunk is computed


@dataclass(frozen=True, slots=True)
class Decided:
    """One chunk's decision by the graph. step: its own. values: of the rows of `DecideSpec.measured`."""

    step: int
    rows: Sequence[Row]
    values: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether all that it was made by are numbers."""
        return bool(np.isfinite(self.values).all())


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number was distributed over the decisions of a generation: percentiles, and how many were finite."""

    count: int
    low: float  # the 10th percentile
    middle: float
    high: float  # the 90th

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None where no value is finite."""
        found = [v for v in values if np.isfinite(v)]
        return cls(len(found), *(float(q) for q in np.percentile(found, (10, 50, 90)))) if found else None

    def __str__(self) -> str:
        return f"{self.low:.3g} / {self.middle:.3g} / {self.high:.3g} ({self.count})"


def spreads(decided: Iterable[Decided]) -> dict[str, Spread]:
    """By the name of each signal, and of the account where there is one, its spread over the decisions."""
    found: dict[str, list[float]] = {}
    for one in decided:
        for row, value in zip(one.rows, one.values, strict=True):
            if row.what == "signal":
                found.setdefault(row.name, []).append(float(value))
            elif row.what == "highest":
                found.setdefault("account", []).append(float(value))
    made = ((name, Spread.of(values)) for name, values in found.items())
    return {name: spread for name, spread in made if spread is not None}


def guards(decided: Iterable[Decided]) -> dict[str, int]:
    """By the name of each guard that the decisions were under, how many of them it changed."""
    found: dict[str, int] = {}
    for one in decided:
        for row, value in zip(one.rows, one.values, strict=True):
            if row.what == "guard":
                found[row.name] = found.get(row.name, 0) + int(value > 0)
    return found


def fits_outside(decided: Sequence[Decided]) -> Iterator[str]:
    """What to tell of fits that gave negative distances, and of accounts that were negative."""
    asked: dict[ir.Polynomial, list[tuple[str, float, float]]] = {}
    counts: dict[ir.Polynomial, int] = {}
    for one in decided:
        found: Mapping[Row, float] = dict(zip(one.rows, map(float, one.values), strict=True))
        for row, value in found.items():
            if row.what == "fit" and row.of is not None and found[Row("fitted", "", row.of)] != 0:
                counts[row.of] = counts.get(row.of, 0) + 1
                if value < 0:
                    asked.setdefault(row.of, []).append((f"step {one.step}", found[Row("fitted", "", row.of)], value))
    for fit, values in asked.items():
        yield negative_fit(fit, values, f"{counts[fit]} decisions")
    low = [v for one in decided for row, v in zip(one.rows, one.values, strict=True) if row.what == "lowest" and v < 0]
    if low:
        yield (
            f"the account was negative at {len(low)} of {len(decided)} decisions (down to {min(low):.3g}): "
            "such steps are reused whatever the threshold is"
        )
