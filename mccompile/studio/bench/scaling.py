"""`bench scaling`: the cost of everything that is not the model, by size.

Nothing of the model is computed: its blocks give back the streams that they get, and what stands before and behind them
gives what it gave at the first step. What is timed is then `ours`: decision, observation, gather, scatter, keeping and
dispatch. The time of the model's own prelude and postlude, under the policy `compute`, is measured beside it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from mccompile import api
from mccompile.backend.inductor import Progress
from mccompile.backend.role import GraphCall, Role, Value
from mccompile.runtime.blocks import Backend
from mccompile.studio.bench.ladder_steps import Conditions, settings
from mccompile.studio.bench.report import Column, Json, Plot, Report, Row
from mccompile.studio.bench.rig import VANILLA, StepWay, compile_ways, repeaters, steps_of
from mccompile.studio.bench.subjects import Subject, all_active
from mccompile.studio.bench.timing import interleaved

BASE, OURS = "vanilla", "share"
COLUMNS = (
    Column("axis", "varied"), Column("count", "tokens", "d"), Column("layers", "layers", "d"),
    Column("chunks", "chunks", "d"), Column("share", "share", ".0%"),
    Column("vanilla_ms", "prelude and postlude ms", ".2f"), Column("ours_ms", "ours ms", ".2f"),
)  # fmt: skip
PLOT = Plot("selected", "ours_ms", "selected tokens", "ms of a step that are not the model", "axis", True, True)
TERMS = ("constant", "per layer", "per 1000 tokens", "per 1000 selected tokens", "per chunk")


@dataclasses.dataclass(frozen=True, slots=True)
class TriedSizes:
    """The sizes that are tried, one axis at a time around the subject's own.

    Compiled graphs want two chunks or more, of two frames or more.
    """

    tokens: tuple[int, ...]  # in frames of the subject's height and width, all in its chunks
    layers: tuple[int, ...]
    shares: tuple[float, ...]
    chunks: tuple[int, ...]


FULL = TriedSizes((8, 32, 128, 400, 800), (1, 6, 30, 60), (0.01, 0.05, 0.25, 0.5, 1.0), (2, 4, 8, 16))
SMALL = TriedSizes((8, 32, 128), (1, 6), (0.01, 0.1, 1.0), (2, 4, 16))


def identity_blocks(backend: Backend) -> Backend:
    """The backend with every block replaced by one that returns the streams it gets."""

    def chosen(module: fx.GraphModule, role: Role) -> GraphCall:
        if role.part not in ("block", "rows"):
            return backend(module, role)
        output = module.graph.output_node()
        streams = len(output.args[0])
        return lambda *arguments: arguments[:streams]

    return chosen


def remembered(backend: Backend) -> Backend:
    """The backend with a prelude and a postlude that compute once for each size, and give that again."""

    def chosen(module: fx.GraphModule, role: Role) -> GraphCall:
        made = backend(module, role)
        if role.part not in ("prelude", "postlude"):
            return made
        known: dict[tuple[object, ...], tuple[Value, ...]] = {}

        def again(*arguments: Value) -> tuple[Value, ...]:
            sizes = tuple(a.shape if isinstance(a, torch.Tensor) else a for a in arguments)
            if sizes not in known:
                known[sizes] = made(*arguments)
            return known[sizes]

        return again

    return chosen


def report(subject: Subject, axes: TriedSizes, under: Conditions, progress: Progress | None = None) -> Report:
    """One row per size. subject: without a mask (causal=False), so that 200 k tokens need no [L, L] tensor."""
    rows: list[Row] = []
    for layers in sorted({subject.layers, *axes.layers}):
        deep = dataclasses.replace(subject, layers=layers)
        model = deep.model(under.device, under.dtype)
        prepared = deep.prepared(model)
        ways = (StepWay(BASE, VANILLA), StepWay(OURS, "share"))
        backend = compile_ways(prepared, ways, under.backend, progress, identity_blocks, deep.probed)
        for axis, sized, share in _cases(deep, axes, subject):
            rows.append(_row(axis, sized, share, model, prepared, backend, under))
    title = f"What is not the model: blocks replaced by the identity, width {subject.dim}"
    about: dict[str, Json] = {**settings(subject, under), "fit_ms": fit(rows)}
    return Report("scaling", title, COLUMNS, tuple(rows), PLOT, about)


def _cases(deep: Subject, axes: TriedSizes, subject: Subject) -> Sequence[tuple[str, Subject, float]]:
    """Axis, sizes and share of every measurement at one depth."""
    found = [("layers", deep, 0.25)] if deep.layers in axes.layers else []
    if deep.layers != subject.layers:
        return found
    total = subject.chunks * subject.frames
    found += [("tokens", dataclasses.replace(deep, frames=max(n // subject.chunks, 1)), 0.25) for n in axes.tokens]
    found += [("share", deep, s) for s in axes.shares]
    found += [("chunks", dataclasses.replace(deep, chunks=c, frames=max(total // c, 1)), 0.25) for c in axes.chunks]
    return found


def _row(
    axis: str, sized: Subject, share: float, model: torch.nn.Module, prepared: api.Prepared, backend: Backend,
    under: Conditions,
) -> Row:  # fmt: skip
    call, pattern = sized.call(under.device, under.dtype), all_active(sized.chunks)
    base = repeaters(model, prepared, (StepWay(BASE, VANILLA),), call, pattern, backend)
    found = repeaters(model, prepared, (StepWay(OURS, "share", share),), call, pattern, remembered(backend))
    seconds = interleaved(steps_of(base | found), under.rounds, under.clock)
    vanilla, ours = (1e3 * statistics.median(seconds[n]) for n in (BASE, OURS))
    return {
        "axis": axis, "count": sized.tokens, "layers": sized.layers, "chunks": sized.chunks, "share": share,
        "selected": found[OURS].tokens() // 2, "vanilla_seconds": list(seconds[BASE]), "seconds": list(seconds[OURS]),
        "vanilla_ms": vanilla, "ours_ms": ours,
    }  # fmt: skip


def fit(rows: Sequence[Row]) -> Mapping[str, Json]:
    """The curve's shape: `ours_ms` as a sum of TERMS, by least squares on relative errors; none is negative.

    One coefficient per term, in ms; `error` is the median relative error of the fit.
    """
    features = np.array([_terms(r) for r in rows])
    wanted = np.array([max(_value(r, "ours_ms"), 1e-3) for r in rows])
    left = list(range(len(TERMS)))
    while True:  # terms that come out negative are dropped, the worst first
        solution, *_ = np.linalg.lstsq(features[:, left] / wanted[:, None], np.ones(len(rows)), rcond=None)
        if len(left) == 1 or solution.min() >= 0.0:
            break
        left.pop(int(solution.argmin()))
    made = features[:, left] @ solution
    found = {TERMS[i]: float(c) for i, c in zip(left, solution, strict=True)}
    return {**{t: found.get(t, 0.0) for t in TERMS}, "error": float(np.median(abs(made / wanted - 1)))}


def _terms(row: Row) -> tuple[float, ...]:
    thousand = 1000.0
    return (
        1.0, _value(row, "layers"), _value(row, "count") / thousand, _value(row, "selected") / thousand,
        _value(row, "chunks"),
    )  # fmt: skip


def _value(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float)
    return float(value)
