"""`bench peers`: diffusers' cache hooks and cache-dit beside our policies, on one pipeline, seed and prompt.

A peer gets the stock transformer with its blocks under torch.compile, below the hooks: the compiled mode that all of
them support, since hooks break a graph that holds them. Nothing of a peer is changed but this: SkyReels-V2's block is
registered with diffusers where its registry does not know it, as its message asks for.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from mccompile.generate.compare import Announce, compile_contenders, run_with
from mccompile.generate.errors import PipelineFailed
from mccompile.generate.run import Generation, generate
from mccompile.lowering.backend import Progress
from mccompile.models.embedded.judge import judge
from mccompile.runtime.trace import share_computed
from mccompile.studio.bench import generations
from mccompile.studio.bench.ladder import settings
from mccompile.studio.bench.peer_ways import PEERS, Peer, Setup, calibrated_ratios, register_blocks
from mccompile.studio.bench.report import Column, Json, Plot, Report, Row
from mccompile.studio.bench.timing import ratio
from mccompile.studio.metrics import psnr, ssim

BASE = generations.VANILLA
STOCK = "diffusers, blocks compiled"
COLUMNS = (
    Column("name", "run"), Column("median", "s", ".2f"), Column("speed_up", "speed-up", ".2f"),
    Column("psnr", "PSNR (dB)", ".1f"), Column("ssim", "SSIM", ".3f"), Column("judge", "prompt followed"),
    Column("remark", "remark"),
)  # fmt: skip
PLOT = Plot("speed_up", "psnr", "speed-up over vanilla, compiled", "PSNR against vanilla (dB)", "kind")
QUICK = {"motioncache": ({"threshold": 0.2},), "fbcache": ({"threshold": 0.08},)}
FAILURES = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError, PipelineFailed)

Run = Callable[[int | None], Generation]  # None, or after how many steps to stop
WARM_UP_STEPS = 2


@dataclass(slots=True)
class Lap:
    """The runs of one way so far, or the error that ended it."""

    done: list[Generation] = field(default_factory=list)
    error: str = ""


def installed() -> bool:
    """Whether cache-dit is there."""
    return importlib.util.find_spec("cache_dit") is not None


def report(
    job: generations.Job, backend: str, repeat: int, quick: bool, announce: Announce, progress: Progress | None
) -> Report:
    """One row per way; a peer that does not run on this pipeline has its own error as the remark."""
    ways = generations.contenders(QUICK if quick else generations.LADDER)
    models = compile_contenders(job.pipe, job.captured, ways, backend, progress)
    runs: dict[str, Run] = {
        name: lambda stop, n=name, m=model: run_with(job.pipe, m, job.call, 0, announce(n), stop)  # type: ignore[misc]
        for name, model in models.items()
    }
    stock = Stock(job, backend, announce)
    runs[STOCK] = stock.run
    rows = stock.rows_of_schedule()
    shipped = register_blocks(job.pipe)
    ratios = calibrated_ratios(job.pipe, rows, lambda: stock.run(None))
    peers = [p for p in PEERS if p.first or not quick]
    runs |= {p.name: lambda stop, p=p: stock.run(stop, p, Setup(job.pipe, rows, ratios)) for p in peers}  # type: ignore[misc]
    laps = take_turns(runs, repeat)
    remarks = {p.name: f"as shipped: {shipped}" for p in peers if p.registered and shipped}
    remarks |= {name: lap.error for name, lap in laps.items() if lap.error}
    shares = {name: share_computed(model.events) for name, model in models.items()}
    table = rows_from(laps, remarks, shares, {p.name: p.kind for p in peers}, job.judged)
    title = f"Speed and nearness to vanilla on {type(job.pipe.transformer).__name__}, the same seed and prompt"
    return Report("peers", title, COLUMNS, table, PLOT, settings(job, backend, repeat))


class Stock:
    """The pipeline with its own transformer; with a compiled backend its blocks run under torch.compile."""

    def __init__(self, job: generations.Job, backend: str, announce: Announce) -> None:
        self._job, self._announce = job, announce
        self._compiled: list[Callable[..., object]] = []
        if backend != "eager":
            self._compiled = [torch.compile(b.forward, dynamic=False) for b in job.pipe.transformer.blocks]

    def run(self, stop: int | None, peer: Peer | None = None, setup: Setup | None = None) -> Generation:
        """One generation, under the peer if one is given."""
        pipe, name = self._job.pipe, peer.name if peer is not None else STOCK
        with self._blocks():
            try:
                if peer is not None and setup is not None:
                    peer.enable(setup)
                return generate(pipe, self._job.call, 0, self._announce(name), stop)
            finally:
                if peer is not None:
                    peer.disable(pipe)

    def rows_of_schedule(self) -> int:
        """Calls of the scheduler's loop in one generation."""
        seen = [0]
        generate(self._job.pipe, self._job.call, 0, lambda _, total: seen.append(total), stop_after=1)
        return seen[-1]

    @contextlib.contextmanager
    def _blocks(self) -> Iterator[None]:
        blocks = self._job.pipe.transformer.blocks
        for block, compiled in zip(blocks, self._compiled, strict=False):
            block.forward = compiled
        try:
            yield
        finally:
            for block in blocks:
                vars(block).pop("forward", None)


def take_turns(runs: Mapping[str, Run], repeat: int) -> dict[str, Lap]:
    """A short untimed run of each way, then `repeat` rounds; a way that fails is left out from then on."""
    laps = {name: Lap() for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            if laps[name].error:
                continue
            try:
                made = run(WARM_UP_STEPS if turn == 0 else None)
            except FAILURES as error:
                laps[name].error = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
            else:
                laps[name].done += [made] if turn else []
    return laps


def rows_from(
    laps: Mapping[str, Lap], remarks: Mapping[str, str], shares: Mapping[str, float], kinds: Mapping[str, str],
    prompt: str | None,
) -> tuple[Row, ...]:  # fmt: skip
    """The table. remarks, shares of the tokens and kinds by name, where there are any."""
    base = laps[BASE].done
    rows: list[Row] = []
    for name, lap in laps.items():
        row: dict[str, Json] = {"name": name, "kind": kinds.get(name, name.split(" ")[0].rstrip(","))}
        row["remark"] = remarks.get(name)
        if lap.done and not lap.error:
            seconds = [g.seconds for g in lap.done]
            video = lap.done[-1].video
            near = psnr(video, base[-1].video)
            row |= {
                "seconds": seconds, "median": statistics.median(seconds), "tokens": shares.get(name),
                "speed_up": ratio([g.seconds for g in base], seconds), "psnr": near if math.isfinite(near) else None,
                "ssim": ssim(video, base[-1].video),
                "judge": generations.judged(judge(video, prompt)) if prompt is not None else None,
            }  # fmt: skip
        rows.append(row)
    return tuple(rows)
