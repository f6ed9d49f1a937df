"""Calibrated sets by name: fitted polynomials and measured tables, shipped ones and those of files beside a policy."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mccompile.arithmetic.fitted import Fitted
from mccompile.language.drawn import rectangles
from mccompile.resources import data_folder

SetKind = Literal["polynomial", "table", "mask"]
KINDS: tuple[SetKind, ...] = ("polynomial", "table", "mask")

LARGEST = 2_000_000
"""The most bytes of a file of sets. A calibration of 1,000 steps with 50 ages has less."""


@dataclass(frozen=True, slots=True)
class CoefficientSet:
    """`values`: coefficients highest power first, a table's entry per step, or a mask's rectangles (language/drawn.py).

    source: where they come from.

    domain: the arguments at which a fitted distance is not negative; None where that is all of 0..1, and for tables.
    fitted: the lowest and the highest argument that it was fitted on; None where the publication does not say.
    """

    name: str
    kind: SetKind
    values: tuple[float, ...]
    source: str
    domain: tuple[float, float] | None
    fitted: tuple[float, float] | None = None

    @property
    def known(self) -> Fitted:
        """What a polynomial of the IR knows of its origin."""
        return Fitted(self.name, self.domain, self.fitted)


NamedSets = Mapping[tuple[SetKind, str], CoefficientSet]


@cache
def coefficient_sets() -> NamedSets:
    """Every shipped set by kind and name: those of publications, and those calibrated on the embedded model."""
    found: dict[tuple[SetKind, str], CoefficientSet] = {}
    for path in sorted(data_folder("policies").glob("*.toml")):
        found |= read_sets(path)
    return found


def read_sets(path: Path) -> NamedSets:
    """The sets of a file. Raises OSError as the file system does, ValueError with the reason where it is none."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    try:
        found = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"it is not TOML ({str(error) or type(error).__name__})") from None
    made: dict[tuple[SetKind, str], CoefficientSet] = {}
    for kind in KINDS:
        entries = found.get(kind, {})
        if not isinstance(entries, dict):
            raise ValueError(f"`{kind}` holds no sets")
        made |= {(kind, name): _set(kind, name, entry) for name, entry in entries.items()}
    return made


def _set(kind: SetKind, name: str, entry: object) -> CoefficientSet:
    match entry:
        case dict() if kind == "mask":
            try:
                numbers = tuple(end for one in rectangles(entry.get("rows")) for end in one)
            except ValueError as error:
                raise ValueError(f"mask {name} {error}") from None
            return CoefficientSet(name, kind, numbers, str(entry.get("source", "")), None)
        case dict() if isinstance(values := entry.get("values"), list) and values:
            numbers = _floats(f"`values` of {kind} {name}", values)
            source = str(entry.get("source", ""))
            domain, fitted = (_range(kind, name, key, entry) for key in ("domain", "fitted"))
            return CoefficientSet(name, kind, numbers, source, domain, fitted)
    raise ValueError(f"{kind} {name} has no `values`")


def _floats(what: str, values: list[object]) -> tuple[float, ...]:
    found = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(found) < len(values) or not all(math.isfinite(v) for v in found):
        raise ValueError(f"{what} are no numbers")
    return tuple(found)


def _range(kind: SetKind, name: str, key: str, entry: Mapping[str, object]) -> tuple[float, float] | None:
    match entry.get(key):
        case None:
            return None
        case [low, high]:
            first, last = _floats(f"`{key}` of {kind} {name}", [low, high])
            return first, last
    raise ValueError(f"`{key}` of {kind} {name} is no pair of numbers")


def fit_of(coefficients: tuple[float, ...]) -> CoefficientSet | None:
    """The shipped polynomial with these coefficients, the first of that kind; None where they are a policy's own."""
    return next((s for s in coefficient_sets().values() if s.kind == "polynomial" and s.values == coefficients), None)


def set_names(kind: SetKind) -> tuple[str, ...]:
    return tuple(sorted(name for of, name in coefficient_sets() if of == kind))
