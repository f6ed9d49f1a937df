"""The file of a calibration: sets that policies name, with the command, the model, the prompts, the quality."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping

from mccompile.studio.calibrate.fitting import Fit
from mccompile.studio.calibrate.sets import CalibratedSets, StepTable
from mccompile.studio.explore.prompts import Prompts

_PER_LINE = 10


def text_of(command: str, about: Mapping[str, object], prompts: Prompts, sets: CalibratedSets) -> str:
    """The text, in TOML. Equal measurements give equal texts."""
    lines = [
        "# Calibrated sets. Policies beside this file reach them by its name and theirs, with a colon between.",
        f"# {command}",
        "# domain: where the fit is a distance and was tried. fitted: the arguments that it was fitted on.",
        "# r2: on the held-out prompts. spread: between prompts, as a standard deviation.",
        "",
        "[about]",
        *(f"{key} = {_value(value)}" for key, value in about.items()),
        f"prompts = {_value(list(prompts.seen))}",
        f"held_out = {_value(list(prompts.held_out))}",
    ]
    model = about.get("model", "")
    for name, fit in sets.fits.items():
        lines += ["", *_polynomial(f"{sets.name}_{name}", fit, f"calibrated on {model}: the output's change by {name}")]
    for name, table in sets.tables.items():
        lines += ["", *_table(f"{sets.name}_{name}", table, f"calibrated on {model}: {table.source}")]
    return "\n".join(lines) + "\n"


def _polynomial(name: str, fit: Fit, source: str) -> Iterator[str]:
    yield f"[polynomial.{_value(name)}]"
    yield f"source = {_value(source)}"
    yield f"values = {_value(list(fit.coefficients))}"
    yield f"domain = {_value([0.0, _rounded(fit.fitted[1])])}"
    yield f"fitted = {_value([_rounded(x) for x in fit.fitted])}"
    yield f"r2 = {fit.r2:.4f}"
    yield f"pairs = {fit.pairs}"


def _table(name: str, table: StepTable, source: str) -> Iterator[str]:
    yield f"[table.{_value(name)}]"
    yield f"source = {_value(source)}"
    yield "values = ["
    for start in range(0, len(table.values), _PER_LINE):
        yield "  " + ", ".join(_value(v) for v in table.values[start : start + _PER_LINE]) + ","
    yield "]"
    yield f"spread = {table.spread:.4g}"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _value(value: object) -> str:
    """A value of TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case dict():
            return f"{{{', '.join(f'{k} = {_value(v)}' for k, v in value.items() if v is not None)}}}"
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def told(sets: CalibratedSets) -> Iterator[str]:
    """The sets in lines for a terminal."""
    for name, fit in sets.fits.items():
        low, high = fit.fitted
        yield (
            f"polynomial {sets.name}_{name}: degree {fit.degree}, R2 {fit.r2:.3f} on held-out prompts, "
            f"fitted on {low:.3g} to {high:.3g}, {fit.pairs} pairs"
        )
    if sets.tables:
        yield textwrap.fill(f"tables {sets.name}_*: {', '.join(sets.tables)}", 120, subsequent_indent="  ")
