"""The four benchmarks by name, each at its full and its quick sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch

from mccompile.backend.inductor import Progress
from mccompile.generate.compare import Announce
from mccompile.generate.errors import OptionRefused
from mccompile.generate.load import EMBEDDED, find_folder
from mccompile.generate.placement import Placement
from mccompile.generate.run import Settings
from mccompile.studio.bench import (
    attention,
    compile_time,
    generations,
    guidance,
    ladder,
    ladder_run,
    ladder_steps,
    overhead,
    peer_ways,
    peers,
    scaling,
    verdict,
    wan,
)
from mccompile.studio.bench.ladder_steps import Conditions
from mccompile.studio.bench.report import Json, Report
from mccompile.studio.bench.rig import half_in_place
from mccompile.studio.bench.subjects import EMBEDDED as EMBEDDED_SIZES
from mccompile.studio.bench.subjects import QUICK, REAL
from mccompile.studio.bench.timing import CallTimer, TimeKind

BenchName = Literal["ladder", "peers", "peers-wan", "scaling", "overhead", "attention"]
QUICK_SHARES = (0.05, 0.25, 1.0)
QUICK_GENERATION = Settings(num_inference_steps=10, num_frames=31, ar_step=1)


@dataclass(frozen=True, slots=True)
class Options:
    """A benchmark and its conditions. repeat: timed rounds, None for the benchmark's own number."""

    what: BenchName
    model: str
    place: Placement
    backend: str
    repeat: int | None
    quick: bool
    real: bool
    clock: TimeKind

    @staticmethod
    def of(
        what: BenchName, model: str, device: str | None, backend: str, repeat: int | None, quick: bool, real: bool,
        clock: TimeKind,
    ) -> Options:  # fmt: skip
        """Checked options. Raises OptionRefused, UnknownModel."""
        if real and what != "ladder":
            raise OptionRefused(f"bench {what} --real", "only the ladder has real sizes", "leave --real out")
        if real and (device == "cpu" or not torch.cuda.is_available()):
            why = "51,000 tokens through 30 layers of width 1536 take a CUDA GPU, and torch sees none"
            raise OptionRefused("bench ladder --real", why, "run it where there is one, or leave --real out")
        if what in ("peers", "peers-wan") and not peers.installed():
            raise OptionRefused(f"bench {what}", "cache-dit is not installed", "pip install 'mccompile[peers]'")
        if clock == "cpu" and device == "cuda":
            raise OptionRefused("--clock cpu", "a GPU's work takes no processor time", "leave --clock out")
        if what == "attention" and device == "cuda":
            raise OptionRefused("bench attention --device", "it measures the CPU's attention", "leave --device out")
        if what in ("peers-wan", "scaling", "overhead", "attention") and model != EMBEDDED:
            own = "the embedded model's weights" if what == "peers-wan" else "at sizes of its own, with random numbers"
            why = f"it measures {own}"
            raise OptionRefused(f"bench {what} --model", why, "leave --model out")
        find_folder(model)
        return Options(what, model, Placement.of(device, None, False), backend, repeat, quick, real, clock)

    def conditions(self, rounds: int) -> Conditions:
        dtype = torch.float32 if self.place.device == "cpu" else torch.bfloat16
        return Conditions(torch.device(self.place.device), dtype, self.backend, self.repeat or rounds, self.clock)


def measure(options: Options, announce: Announce, progress: Progress) -> tuple[Report, ...]:
    """Runs the benchmark; one report per table."""
    match options.what:
        case "ladder":
            return _ladder(options, announce, progress)
        case "peers" | "peers-wan":
            return _peers(options, announce, progress)
        case "scaling":
            subject = replace(EMBEDDED_SIZES, causal=False, chunks=4, frames=8, height=16, width=16)
            axes = scaling.SMALL if options.quick else scaling.FULL
            return (scaling.report(subject, axes, options.conditions(5), progress),)
        case "overhead":
            chunks = (2, 4) if options.quick else (2, 8, 16)
            subject = replace(EMBEDDED_SIZES, layers=2) if options.quick else EMBEDDED_SIZES
            under, layers = options.conditions(9), (2,) if options.quick else (2, 6, 30)
            steps = overhead.report(subject, chunks, under, progress)
            base = compile_time.report(replace(EMBEDDED_SIZES, chunks=2), layers, under, progress)
            return steps, base, guidance.report(subject, under, progress)
        case "attention":
            swept = attention.report(attention.QUICK if options.quick else attention.FULL)
            return swept, attention.short(swept)
    assert_never(options.what)


def _peers(options: Options, announce: Announce, progress: Progress) -> tuple[Report, ...]:
    """On the model, and where that is the embedded one and not quick also on its weights in Wan's transformer."""
    how = (options.backend, options.repeat or 1, CallTimer(torch.device(options.place.device), options.clock))
    found = []
    if options.what == "peers":
        job = generations.load(options.model, options.place, QUICK_GENERATION if options.quick else None)
        policies = peers.QUICK if options.quick else peers.POLICIES
        ways = [p for p in peer_ways.SKYREELS if p.first or not options.quick]
        found.append(peers.report("peers", job, policies, ways, *how, announce, progress))
    if options.what == "peers-wan" or (options.model == EMBEDDED and not options.quick):
        on_wan = wan.load(options.place)
        found.append(peers.report("peers_wan", on_wan, wan.POLICIES, peer_ways.WAN, *how, announce, progress))
    return tuple(table for made in found for table in (made, verdict.report(made)))


def _ladder(options: Options, announce: Announce, progress: Progress) -> tuple[Report, ...]:
    if options.real:
        steps = ladder_steps.report(REAL, ladder_steps.SHARES, options.conditions(3), "ladder_real_steps", progress)
        return steps, ladder_run.report(REAL, steps)
    if options.quick:
        under = replace(options.conditions(2), warm_up=0)
        return (ladder_steps.report(QUICK, QUICK_SHARES, under, "ladder_quick", progress, half_in_place),)
    deep = replace(QUICK, layers=4)
    steps = ladder_steps.report(deep, ladder_steps.SHARES, options.conditions(4), "ladder_steps", progress)
    job = generations.load(options.model, options.place)
    ways = generations.contenders(generations.LADDER)
    clock = CallTimer(torch.device(options.place.device), options.clock)
    whole = ladder.report(job, ways, options.backend, options.repeat or 1, clock, announce, progress)
    return whole, steps


def summary(reports: Sequence[Report]) -> dict[str, Json]:
    """One number for a script to look at: the least realised/ideal of all rows, where the benchmark has it."""
    found: dict[str, Json] = {"benchmark": reports[0].name}
    with contextlib.suppress(ValueError):
        found["realised_over_ideal_min"] = round(ladder_steps.worst([r for x in reports for r in x.rows]), 4)
    gained = [r["speed_up"] for x in reports if x.name == "attention" for r in x.rows]
    if gained:
        found["chosen_over_torch_min"] = round(min(float(g) for g in gained), 4)  # type: ignore[arg-type]
    return found
