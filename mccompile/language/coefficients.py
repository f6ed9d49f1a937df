"""Calibrated sets by name: fitted polynomials and measured tables of `policies/coefficients.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Literal

from mccompile.resources import data_folder

SetKind = Literal["polynomial", "table"]


@dataclass(frozen=True, slots=True)
class CoefficientSet:
    """`values`: coefficients highest power first, or a table's entry per step. `source`: where they come from."""

    name: str
    kind: SetKind
    values: tuple[float, ...]
    source: str


@cache
def coefficient_sets() -> dict[tuple[SetKind, str], CoefficientSet]:
    """Every shipped set by kind and name."""
    with (data_folder("policies") / "coefficients.toml").open("rb") as file:
        data = tomllib.load(file)
    kinds: tuple[SetKind, ...] = ("polynomial", "table")
    return {
        (kind, name): CoefficientSet(name, kind, tuple(float(v) for v in entry["values"]), entry["source"])
        for kind in kinds
        for name, entry in data[kind].items()
    }


def set_names(kind: SetKind) -> tuple[str, ...]:
    return tuple(sorted(name for of, name in coefficient_sets() if of == kind))
