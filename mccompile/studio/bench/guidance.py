"""`bench overhead`, second table: both guidance branches in one forward against one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mccompile.backend.inductor import Progress
from mccompile.studio.bench.ladder_steps import Conditions, settings
from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.rig import StepWay, compile_ways, repeaters, steps_of
from mccompile.studio.bench.subjects import Subject, all_active
from mccompile.studio.bench.timing import interleaved, ratio

SHARES = (0.05, 0.25, 1.0)
COLUMNS = (
    Column("name", "tokens computed"), Column("apart", "one after the other (ms)", ".1f"),
    Column("together", "in one forward (ms)", ".1f"), Column("speed_up", "speed-up", ".2f"),
)  # fmt: skip
PLOT = Plot("share", "speed_up", "share of the tokens computed", "speed-up of one forward", "kind", log_x=True)


def report(
    subject: Subject, under: Conditions, progress: Progress | None = None, shares: Sequence[float] = SHARES
) -> Report:
    """A step (two calls) at each share of the tokens; both ways decide alike, for the second call follows the first."""
    model = subject.model(under.device, under.dtype)
    prepared = subject.prepared(model)
    ways = {s: tuple(StepWay(f"{p} {s}", p, s) for p in ("apart", "together")) for s in shares}
    tried = [way for pair in ways.values() for way in pair]
    backend = compile_ways(prepared, tried, under.backend, progress)
    call = subject.call(under.device, under.dtype)
    found = repeaters(model, prepared, tried, call, all_active(subject.chunks), backend)
    seconds = interleaved(steps_of(found), under.rounds, under.clock, warm_up=2)
    rows: list[Row] = []
    for share, (apart, together) in ways.items():
        one, two = seconds[apart.name], seconds[together.name]
        rows.append({
            "name": f"{share:.0%}", "kind": "guidance", "share": share, "seconds": [*one, *two],
            "apart": 1e3 * statistics.median(one), "together": 1e3 * statistics.median(two),
            "speed_up": ratio(one, two),
        })  # fmt: skip
    title = f"Both guidance branches in one forward, {subject.layers} layers, {subject.tokens} tokens"
    return Report("guidance", title, COLUMNS, tuple(rows), PLOT, settings(subject, under))
