"""Makes the record of a run from the compiled model that has run it, and from what was seen of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mccompile import ir
from mccompile.backend.compiled_roles import CompiledRoles
from mccompile.generate.compare import announce
from mccompile.language.walk import walk
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import StaticMoment, evaluate
from mccompile.policy.phases import Grid
from mccompile.policy.planner import Plan
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import Event, by_cell
from mccompile.studio.report.record import Record, Way, masks_of
from mccompile.studio.report.seen import Watching
from mccompile.studio.report.story import LayerRegion, PlannedStep, SeenCall, Story, Threshold


def record_of(
    model: CompiledModel,
    ways: Sequence[Way],
    videos: tuple[NDArray[np.uint8], ...],
    about: Mapping[str, object],
    fps: int,
) -> Record:
    """The record of the latest run of `model`, which `watch` has seen and which is the last of the ways.

    videos: uint8 [F, H, W, 3] by way.
    """
    seen = model.runner.watch
    assert isinstance(seen, Watching)
    thumbnails: Mapping[tuple[int, int], NDArray[np.uint8]] = {}
    undrawn = "they were not asked for"
    if seen.predictions is not None:
        thumbnails = seen.predictions.thumbnails(videos[-1], seen.frames, seen.chunks)
        undrawn = seen.predictions.why
    return Record(
        about=about,
        said=announce(model),
        refusals=tuple(f"{r.site}: {r.reason}" for r in model.refusals),
        fps=fps,
        ways=tuple(ways),
        videos=videos,
        events=by_cell(model.events),
        masks=masks_of(model.events, model.runner.masks or ()),
        weights=dict(seen.weights),
        thumbnails=thumbnails,
        story=_story(model, seen, undrawn),
    )


def watch(model: CompiledModel, thumbnails: bool) -> None:
    """Has the next runs of `model` watched for their record. thumbnails: also the scheduler's predictions."""
    seen = Watching(thumbnails)
    model.runner.masks = []
    for each in model.experts:
        each.runner.watch = seen


def _story(model: CompiledModel, seen: Watching, undrawn: str) -> Story:
    plans = [plan for _, plan in sorted(seen.plans.items())]
    apart = any(len(each.runner.bounds) > 1 for each in model.experts)
    regions = (region for each in model.experts for region in _layers(each.runner.lowered))
    return Story(
        plan=() if apart else tuple(step for plan in plans for step in _planned(plan)),
        thresholds=tuple(_thresholds(model, seen.plans)),
        regions=tuple(dict.fromkeys(regions)),
        calls=tuple(seen.calls),
        warnings=model.summary().warnings,
        fallbacks=(*_fallbacks(model), *unseen(model.events, seen.calls)),
        weighed=seen.weighed if seen.weights else "",
        undrawn=undrawn,
        watching=seen.seconds + (seen.predictions.seconds if seen.predictions is not None else 0.0),
    )


def _thresholds(model: CompiledModel, plans: Mapping[int, Plan]) -> Iterator[Threshold]:
    """Those of each transformer at its own steps of the schedule; at the steps of the others they have no value."""
    total = max((first + plan.grid.steps for first, plan in plans.items()), default=0)
    found: dict[Threshold, None] = {}
    for each in model.experts:
        first = each.runner.first_step
        if first not in plans:  # it took no part
            continue
        for group, bound in each.runner.bounds.items():
            for one in thresholds(bound, plans[first].grid, group):
                before = min(plans)
                values = (None,) * (first - before) + one.values
                found[replace(one, values=values + (None,) * (total - before - len(values)))] = None
    return iter(found)


def _layers(lowered: LoweredModel) -> Iterator[LayerRegion]:
    """The regions. Those of one sublayer in all blocks are one, and so is all that is computed beside them."""
    if not any(piece.sublayers for piece in lowered.pieces):
        yield from (LayerRegion(r.first, r.last, r.keep or "") for r in lowered.regions)
        return
    found: dict[str, set[int]] = {}
    for region in lowered.regions:
        pieces = lowered.pieces[region.first : region.last + 1]
        parts = dict.fromkeys(part for piece in pieces for part in piece.sublayers)
        keep = "" if region.keep is None else " of ".join(filter(None, (region.keep, " and ".join(parts))))
        found.setdefault(keep, set()).update(piece.block for piece in pieces)
    yield from (LayerRegion(min(blocks), max(blocks), keep) for keep, blocks in found.items())


def _planned(plan: Plan) -> Iterator[PlannedStep]:
    return (PlannedStep("" if c.phase is None else plan.phases[c.phase], c.action) for c in plan.cells)


def _fallbacks(model: CompiledModel) -> Iterator[str]:
    """What ran another way than it could have: graphs, guards that overruled the rule, results that were no numbers."""
    backend, summary = model.runner.backend, model.summary()
    if isinstance(backend, CompiledRoles):
        yield from (f"{r.site}: {r.reason}" for r in backend.refusals)
    yield from (f"guard {name} changed {count} decisions" for name, count in summary.guards.items() if count)
    if summary.odd:
        yield f"the results of {summary.odd} calls were not finite"


def unseen(events: Sequence[Event], calls: Sequence[SeenCall]) -> Iterator[str]:
    """What a resumed run cannot tell: of the calls before the stop its journal has the events, and nothing else."""
    first = min((event.row for event in events), default=0)
    again = min((call.row for call in calls), default=first)
    if again > first:
        yield f"the run was resumed at step {again} of the schedule: accounts, signals and bytes are shown from there"


def thresholds(bound: BoundPolicy, grid: Grid, group: str = "") -> Iterator[Threshold]:
    """What each account is compared with, phase by phase; comparisons of other things have no account.

    bound: the policy as a group of regions sees it; the accounts of a group with a name have it before their own.
    """
    params = {name: np.float32(value) for name, value in bound.values.items()}
    signals = {s.name: s for s in bound.ir.signals}
    for phase in bound.ir.phases:
        if not isinstance(phase.rule, ir.Reuse):
            continue
        for found in walk(phase.rule.condition, signals, late=False):
            if not isinstance(found, ir.Apply) or found.op not in ("lt", "le", "gt", "ge"):
                continue
            for one, other in (found.args, tuple(reversed(found.args))):
                into = [e.into for e in walk(one, signals, late=False) if isinstance(e, ir.Accumulate)]
                if into:
                    moments = (StaticMoment(params, signals, grid, step, {}, None) for step in range(grid.steps))
                    values = tuple(_value(other, moment) for moment in moments)
                    yield Threshold(f"{group} {into[0]}".strip(), phase.name, values)


def _value(expr: ir.Expr, moment: StaticMoment) -> float | None:
    """None where it depends on data, or is no number."""
    try:
        value = float(evaluate(expr, moment))
    except ValueError:
        return None
    return value if np.isfinite(value) else None
