"""Where the numbers of a fit come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a polynomial comes from. domain: where it is a distance, None: all of 0..1. fitted: the arguments seen."""

    name: str
    domain: tuple[float, float] | None
    fitted: tuple[float, float] | None
