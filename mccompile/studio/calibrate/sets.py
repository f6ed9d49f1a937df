"""What a calibration gives: polynomials, and tables with an entry per step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mccompile.studio.calibrate.fitting import Fit
from mccompile.studio.calibrate.samples import Samples


@dataclass(frozen=True, slots=True)
class StepTable:
    """values: an entry per step. source: what they are. spread: how far prompts differ, as a standard deviation."""

    values: tuple[float, ...]
    source: str
    spread: float


@dataclass(frozen=True, slots=True)
class CalibratedSets:
    """name: how the names begin. fits, tables: by the rest of their names."""

    name: str
    fits: Mapping[str, Fit]
    tables: Mapping[str, StepTable]


def tables_of(samples: Sequence[Samples], regions: Sequence[str], ages: int) -> Mapping[str, StepTable]:
    """The tables that runs show. regions: their names, or their blocks in words; a single one is not named.

    ratios: of the residual's size to that at the step before (MagCache), of all branches and of each. error_N: the
    relative error of reusing a residual that is N steps old (SmoothCache). sensitivity_latent, sensitivity_timestep:
    where they were measured (SenCache).
    """
    found: dict[str, StepTable] = {}
    for number, region in enumerate(regions):
        end = f"_{region if region.isidentifier() else number}" if len(regions) > 1 else ""
        of = f" of {region}" if len(regions) > 1 else ""
        ratio = f"ratio {number}"
        found[f"ratios{end}"] = _by_step(samples, ratio, 1.0, f"ratio of residual norms{of}, all branches")
        for branch in samples[0].branches if len(samples[0].branches) > 1 else ():
            what = f"ratio of residual norms{of}, {branch}"
            found[f"ratios{end}_{branch}"] = _by_step(samples, ratio, 1.0, what, branch)
        for age in range(1, ages + 1):
            what = f"relative error of a residual{of} that is {age} steps old".replace(" 1 steps", " 1 step")
            found[f"error_{age}{end}"] = _by_age(samples, f"residual {number}", age, what)
    if np.isfinite(np.concatenate([s.step("to latent") for s in samples])).any():
        for name, what in (("latent", "the latents"), ("timestep", "the timestep, for 1 of its 1000")):
            source = f"how far the output moves with {what}, root mean squares"
            found[f"sensitivity_{name}"] = _by_step(samples, f"to {name}", None, source)
    return found


def _by_step(
    samples: Sequence[Samples], column: str, first: float | None, source: str, branch: str | None = None
) -> StepTable:
    """Means over chunks and prompts. first: the entry of step 0, where nothing came before; None: that of step 1."""
    rows = [
        (s.step("step"), s.step(column), np.ones(len(s.steps), bool) if branch is None else _of(s, branch))
        for s in samples
    ]
    return _table([(step[own], value[own]) for step, value, own in rows], first, source)


def _of(samples: Samples, branch: str) -> np.ndarray:
    return samples.step("branch") == samples.branches.index(branch)


def _by_age(samples: Sequence[Samples], column: str, age: int, source: str) -> StepTable:
    """The same of the pairs of one age. Before that age nothing can be reused, and the first entry that is stands."""
    rows = [(s.pair("step"), s.pair(column), s.pair("age") == age) for s in samples]
    return _table([(step[own], value[own]) for step, value, own in rows], None, source)


def _table(rows: Sequence[tuple[np.ndarray, np.ndarray]], first: float | None, source: str) -> StepTable:
    last = max((int(step.max()) for step, _ in rows if len(step)), default=0)
    each = np.array([list(_means(step, value, last)) for step, value in rows])
    known = np.isfinite(each).any(0)
    values = np.array([np.nanmean(column) if ok else np.nan for column, ok in zip(each.T, known, strict=True)])
    places = np.flatnonzero(known)
    values = np.interp(np.arange(last + 1), places, values[places]) if len(places) else np.zeros(last + 1)
    if first is not None:
        values[0] = first
    spread = float(np.mean([np.nanstd(c) for c, ok in zip(each.T, known, strict=True) if ok])) if len(places) else 0.0
    return StepTable(tuple(float(f"{v:.6g}") for v in values), source, spread)


def _means(step: np.ndarray, value: np.ndarray, last: int) -> Iterator[float]:
    for at in range(last + 1):
        own = value[(step == at) & np.isfinite(value)]
        yield float(own.mean()) if len(own) else float("nan")
