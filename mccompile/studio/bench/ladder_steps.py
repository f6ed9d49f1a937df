"""The ladder, step by step: the transformer at fixed shares of its tokens, against the compiled vanilla step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mccompile.backend.inductor import Progress
from mccompile.runtime.blocks import Backend
from mccompile.studio.bench.report import Column, Json, Plot, Report, Row
from mccompile.studio.bench.rig import (
    BASELINE,
    EXACT,
    VANILLA,
    StepWay,
    as_it_is,
    compile_ways,
    repeaters,
    step_flops,
    steps_of,
)
from mccompile.studio.bench.subjects import Subject, all_active
from mccompile.studio.bench.timing import CallTimer, TimeKind, interleaved, ratio

SHARES = (0.05, 0.10, 0.25, 0.50, 0.75, 1.0)
QUICKLY_WARM = 0.25  # shares up to which a step costs next to nothing
BASE, MASKED = "vanilla", "vanilla, boolean mask"
COLUMNS = (
    Column("name", "step"), Column("ms", "ms", ".1f"), Column("tokens", "tokens", ".1%"),
    Column("flops", "FLOPs", ".1%"), Column("speed_up", "speed-up", ".2f"), Column("ideal", "ideal", ".2f"),
    Column("realised_over_ideal", "realised/ideal", ".2f"),
)  # fmt: skip
PLOT = Plot(
    "tokens", "realised_over_ideal", "share of the tokens computed", "realised / ideal speed-up", "kind", log_x=True
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and how often steps are timed. backend: "inductor" or "eager". warm_up: untimed rounds, after a first."""

    device: torch.device
    dtype: torch.dtype
    backend: str
    rounds: int
    kind: TimeKind = "wall"
    warm_up: int = 1

    @property
    def clock(self) -> CallTimer:
        return CallTimer(self.device, self.kind)


def ways(shares: Sequence[float], exact: bool) -> tuple[StepWay, ...]:
    """The vanilla step first, then, if wanted, vanilla under the masks as they are and exact, then the shares.

    Vanilla is the fastest that there is: compiled, with an additive mask that is made once.
    """
    others = (StepWay(MASKED, BASELINE), StepWay("exact", EXACT)) if exact else ()
    return (StepWay(BASE, VANILLA), *others, *(StepWay(f"{s:.0%} of tokens", "share", s) for s in shares))


def measure(
    subject: Subject,
    shares: Sequence[float],
    under: Conditions,
    progress: Progress | None = None,
    instead: Callable[[Backend], Backend] = as_it_is,
) -> tuple[Row, ...]:
    """One row per way, all chunks active. A row holds its raw seconds; ratios are against the first row.

    Where rounds are not warmed up, `exact` is left out, which computes what 100 % of the tokens do.
    """
    model = subject.model(under.device, under.dtype)
    prepared = subject.prepared(model)
    tried = ways(shares, exact=under.warm_up > 0)
    backend = compile_ways(prepared, tried, under.backend, progress, instead)
    call = subject.call(under.device, under.dtype)
    found = repeaters(model, prepared, tried, call, all_active(subject.chunks), backend)
    for way in tried:
        if under.warm_up == 0 and way.share <= QUICKLY_WARM:
            found[way.name].step()
    seconds = interleaved(steps_of(found), under.rounds, under.clock, under.warm_up)
    flops, tokens = step_flops(found), {n: r.tokens() for n, r in found.items()}
    return tuple(step_row(way, seconds, flops, tokens) for way in tried)


def step_row(
    way: StepWay, seconds: Mapping[str, Sequence[float]], flops: Mapping[str, float], tokens: Mapping[str, int]
) -> Row:
    """realised: time of the vanilla step by this one's. ideal: its FLOPs by this one's."""
    realised = ratio(seconds[BASE], seconds[way.name])
    ideal = flops[BASE] / flops[way.name]
    kind = "shares of the tokens" if way.policy == "share" else way.name
    return {
        "name": way.name, "kind": kind, "seconds": list(seconds[way.name]),
        "ms": 1e3 * statistics.median(seconds[way.name]), "tokens": tokens[way.name] / tokens[BASE],
        "gflops": flops[way.name] / 1e9, "flops": 1 / ideal, "speed_up": realised, "ideal": ideal,
        "realised_over_ideal": realised / ideal,
    }  # fmt: skip


def report(
    subject: Subject,
    shares: Sequence[float],
    under: Conditions,
    name: str,
    progress: Progress | None = None,
    instead: Callable[[Backend], Backend] = as_it_is,
) -> Report:
    """The table of `measure`."""
    rows = measure(subject, shares, under, progress, instead)
    title = f"One step of the transformer, {subject.layers} layers, {subject.tokens} tokens, both guidance branches"
    return Report(name, title, COLUMNS, rows, PLOT, settings(subject, under))


def settings(subject: Subject, under: Conditions) -> dict[str, Json]:
    """Sizes and conditions as JSON."""
    sizes = {n: getattr(subject, n) for n in Subject.__slots__}
    dtype = str(under.dtype).removeprefix("torch.")
    how: dict[str, Json] = {"backend": under.backend, "rounds": under.rounds, "clock": under.kind}
    return {**sizes, "device": str(under.device), "dtype": dtype, **how}


def worst(rows: Sequence[Row]) -> float:
    """The smallest realised/ideal of all rows but those of vanilla. Raises ValueError where no row has it."""
    found = [r.get("realised_over_ideal") for r in rows if r.get("name") not in (BASE, MASKED)]
    return min(float(x) for x in found if isinstance(x, int | float))
