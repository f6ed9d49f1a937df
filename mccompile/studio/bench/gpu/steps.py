"""Stages that time single steps: the ladder of the 1.3B transformer, its profile, and MAGI-1."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import islice

import torch
from torch.profiler import ProfilerActivity, profile

from mccompile.generate.flops import prices_of
from mccompile.studio.bench.gpu.machine import Machine
from mccompile.studio.bench.gpu.magi import MagiSubject
from mccompile.studio.bench.gpu.telling import TellRow
from mccompile.studio.bench.report import Json
from mccompile.studio.bench.rig import BASELINE, EXACT, VANILLA, InTurn, StepWay, compile_ways
from mccompile.studio.bench.subjects import Subject, all_active
from mccompile.studio.bench.timing import CallTimer

KERNELS = 20  # of the profile's table
BASES = (
    StepWay("vanilla, its own mask", BASELINE),
    StepWay("vanilla, additive mask", VANILLA),
    StepWay("vanilla, block-causal: exact", EXACT),
)


def by_share(shares: Sequence[float]) -> tuple[StepWay, ...]:
    """A step at each share of the tokens."""
    return tuple(StepWay(f"{s:.0%} of tokens", "share", s) for s in shares)


def prepared_steps(machine: Machine, subject: Subject | MagiSubject, tell: TellRow) -> InTurn:
    """The subject with all that its steps need compiled; tells how long that took."""
    clock, found = CallTimer(machine.device), list[InTurn]()

    def make() -> None:
        made = machine.make(subject, True)
        assert made.prepared is not None
        backend = compile_ways(made.prepared, (*BASES, *by_share((1.0,))), machine.backend)
        found.append(InTurn(made.model, made.prepared, made.call, all_active(subject.chunks), backend))

    tell({"name": "capture and compile", "kind": "compile", "seconds": clock.seconds(make)})
    return found[0]


def ladder(machine: Machine, steps: InTurn, tell: TellRow) -> None:
    """Vanilla three ways, then each share. flops: of the first way's."""
    clock, base, tokens, prices = CallTimer(machine.device), 0.0, 0, None
    for way in (*BASES, *by_share(machine.scale.shares)):
        repeater = steps.take(way)
        repeater.step()  # as every step after it: nothing is planned or measured anew
        seconds = [clock.seconds(repeater.step) for _ in range(machine.scale.rounds)]
        prices = prices or prices_of(repeater.model, repeater.call)
        flops = repeater.flops(prices)
        base, tokens = base or flops, tokens or repeater.tokens()
        milliseconds = 1e3 * statistics.median(seconds)
        tell({
            "name": way.name, "kind": "shares of the tokens" if way.policy == "share" else way.policy,
            "seconds": seconds, "ms": milliseconds, "tokens": repeater.tokens() / tokens, "flops": flops / base,
            "tflops": flops / milliseconds / 1e9, "peak_gb": _peak(machine),
        })  # fmt: skip


def profiled(machine: Machine, steps: InTurn, tell: TellRow) -> None:
    """One step at the smallest share: its time, how many kernels it has, and the longest of them."""
    repeater = steps.take(*by_share(machine.scale.shares[:1]))
    repeater.step()
    seconds = CallTimer(machine.device).seconds(repeater.step)
    on_gpu = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as seen:
        CallTimer(machine.device).seconds(repeater.step)
    events = [e for e in seen.key_averages() if not on_gpu or e.self_device_time_total > 0]
    cost = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
    launches = sum(e.count for e in events if e.key in cost)
    tell({"name": "step", "ms": seconds * 1e3, "launches": launches, "busy_ms": sum(cost.values()) / 1e3})
    for event in islice(sorted(events, key=lambda e: -cost[e.key]), KERNELS):
        tell({"name": event.key[:120], "count": event.count, "ms": cost[event.key] / 1e3})


def _peak(machine: Machine) -> Json:
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated(machine.device) / 1e9
    torch.cuda.reset_peak_memory_stats(machine.device)
    return peak
