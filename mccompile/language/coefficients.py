"""Calibrated sets by name: fitted polynomials and measured tables of `policies/coefficients.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mccompile.resources import data_folder

SetKind = Literal["polynomial", "table"]


@dataclass(frozen=True, slots=True)
class CoefficientSet:
    """`values`: coefficients highest power first, or a table's entry per step. `source`: where they come from.

    domain: the arguments at which a fitted distance is not negative; None where that is all of 0..1, and for tables.
    """

    name: str
    kind: SetKind
    values: tuple[float, ...]
    source: str
    domain: tuple[float, float] | None


@cache
def coefficient_sets() -> dict[tuple[SetKind, str], CoefficientSet]:
    """Every shipped set by kind and name."""
    with (data_folder("policies") / "coefficients.toml").open("rb") as file:
        data = tomllib.load(file)
    kinds: tuple[SetKind, ...] = ("polynomial", "table")
    return {
        (kind, name): CoefficientSet(name, kind, _floats(entry["values"]), entry["source"], _domain(entry))
        for kind in kinds
        for name, entry in data[kind].items()
    }


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _domain(entry: Mapping[str, list[float]]) -> tuple[float, float] | None:
    if "domain" not in entry:
        return None
    low, high = entry["domain"]
    return float(low), float(high)


def fit_of(coefficients: tuple[float, ...]) -> CoefficientSet | None:
    """The shipped polynomial with these coefficients, the first of that kind; None where they are a policy's own."""
    return next((s for s in coefficient_sets().values() if s.kind == "polynomial" and s.values == coefficients), None)


def set_names(kind: SetKind) -> tuple[str, ...]:
    return tuple(sorted(name for of, name in coefficient_sets() if of == kind))
