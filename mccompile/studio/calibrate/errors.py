"""Errors of a calibration (MC077x)."""

from __future__ import annotations

from collections.abc import Sequence

from mccompile.diagnostics.failure import StatedFailure


class CalibrationError(StatedFailure):
    """Base: a code, then place, cause and remedy."""

    code = "MC0700"


class WorthlessFit(CalibrationError):
    """Polynomials that do not tell how far the output moves. why: a sentence for each."""

    code = "MC0771"

    def __init__(self, why: Sequence[str]) -> None:
        super().__init__(
            f"no polynomial was written for {why[0]}",
            "measure another --signal, give more prompts or more --steps, or accept less with --least-r2",
            causes=tuple(why[1:]),
        )


class NotMeasurable(CalibrationError):
    """A signal or a model of which a calibration has nothing to measure."""

    code = "MC0772"

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what} cannot be calibrated: {why}", remedy)
