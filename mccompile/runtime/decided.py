"""What the decisions of a request were made by, as the decision graph has measured it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mccompile.lowering.measured import MeasuredRow
from mccompile.policy.influence import beyond, negative_fit

ODD = "a signal is not finite"  # why a chunk is computed


@dataclass(frozen=True, slots=True)
class Decided:
    """One chunk's decision by the graph. step: its own. values: what is told of the rule of its phase."""

    step: int
    values: Mapping[MeasuredRow, float]

    @property
    def finite(self) -> bool:
        """Whether all that it was made by are numbers."""
        return all(np.isfinite(v) for v in self.values.values())


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
    """By the name of each signal, and of each account, its spread over the decisions."""
    found: dict[str, list[float]] = {}
    for row, value in _rows(decided):
        if row.what in ("signal", "highest"):
            account = f"account {row.name}" if row.name else "account"
            found.setdefault(row.name if row.what == "signal" else account, []).append(value)
    made = ((name, Spread.of(values)) for name, values in found.items())
    return {name: spread for name, spread in made if spread is not None}


def guards(decided: Iterable[Decided]) -> dict[str, int]:
    """By the name of each guard that the decisions were under, how many of them it changed."""
    found: dict[str, int] = {}
    for row, value in _rows(decided):
        if row.what == "guard":
            found[row.name] = found.get(row.name, 0) + int(value > 0)
    return found


def _rows(decided: Iterable[Decided]) -> Iterator[tuple[MeasuredRow, float]]:
    return (found for one in decided for found in one.values.items())


def fits_outside(decided: Sequence[Decided]) -> Iterator[str]:
    """What to tell of fits that gave negative distances, and of accounts that were negative."""
    for fit in dict.fromkeys(row.of for row, _ in _rows(decided) if row.of is not None):
        gave, of = MeasuredRow("fit", "", fit), MeasuredRow("fitted", "", fit)
        asked = [one for one in decided if gave in one.values]
        below = [(f"step {one.step}", one.values[of], one.values[gave]) for one in asked if one.values[gave] < 0]
        if below:
            yield negative_fit(fit, below, f"{len(asked)} decisions")
        elif far := beyond(fit, [(f"step {one.step}", one.values[of]) for one in asked], f"{len(asked)} decisions"):
            yield far
    accounts = [value for row, value in _rows(decided) if row.what == "lowest"]
    if any(value < 0 for value in accounts):
        yield (
            f"the account was negative at {sum(v < 0 for v in accounts)} of {len(accounts)} decisions "
            f"(down to {min(accounts):.3g}): such a step is reused whatever the threshold is"
        )
