"""`bench peers`: diffusers' cache hooks and cache-dit beside our policies, on one pipeline, seed and prompt.

A peer gets the stock transformer with its blocks under torch.compile, below the hooks. All peers support this mode,
whereas a hook breaks a graph that contains it. A peer is changed in one way only: SkyReels-V2's block is registered
with diffusers if the registry does not know it, as its message asks for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from mccompile.backend.inductor import Progress
from mccompile.generate.compare import Announce, compile_contenders
from mccompile.generate.run import Generation, generate
from mccompile.studio.bench import generations
from mccompile.studio.bench.ladder import settings
from mccompile.studio.bench.peer_ways import Peer, Setup, calibrated_ratios, heard, left_clean, register_blocks
from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.stock import REGIONAL, compiled_forwards, replaced
from mccompile.studio.bench.timing import CallTimer
from mccompile.studio.bench.verdict import OURS, PEERS, with_plane

STOCK = REGIONAL
COLUMNS = (
    Column("name", "run"), Column("median", "s", ".2f"), Column("speed_up", "speed-up", ".2f"),
    Column("psnr", "PSNR (dB)", ".1f"), Column("ssim", "SSIM", ".3f"), Column("judge", "prompt followed"),
    Column("remark", "remark"),
)  # fmt: skip
PLOT = Plot(
    "speed_up", "near", "speed-up over vanilla, compiled", "PSNR against vanilla (dB; 60 stands for more)", "side",
    line=False, label="name", front="front",
)  # fmt: skip
POLICIES: generations.Policies = {
    "motioncache": tuple({"threshold": t} for t in (0.1, 0.2, 0.3, 0.4, 0.5)),
    "motioncache_fast": ({},),
    "flowcache": ({"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.4}),
    "teacache": ({"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.4}),
    "fbcache": ({"threshold": 0.05}, {"threshold": 0.08}, {"threshold": 0.1}, {"threshold": 0.2}),
    "dbcache": ({"threshold": 0.05}, {"threshold": 0.1}),
    "motioncache_embedded": ({"threshold": 0.1}, {"threshold": 0.2}),
    "teacache_embedded_taylor": ({"threshold": 0.1}, {"threshold": 0.2}),
    "taylorseer_lite": ({"interval": 3.0}, {"interval": 5.0}),
}
QUICK: generations.Policies = {"motioncache": ({"threshold": 0.2},), "fbcache": ({"threshold": 0.1},)}


def installed() -> bool:
    """Whether cache-dit is there."""
    return importlib.util.find_spec("cache_dit") is not None


def report(
    name: str,
    job: generations.GenerationJob,
    policies: generations.Policies,
    peers: Sequence[Peer],
    backend: str,
    repeat: int,
    clock: CallTimer,
    announce: Announce,
    progress: Progress | None,
) -> Report:
    """One row per way; a peer that does not run on this pipeline has its own error as the remark, or its warning."""
    models = compile_contenders(job.pipe, job.captured, generations.contenders(policies), backend, progress)
    stock = Stock(job, backend, announce)
    rows = stock.rows_of_schedule()
    shipped = register_blocks(job.pipe)
    bare = Setup(job.pipe, rows, ())
    setup = replace(bare, ratios=calibrated_ratios(lambda peer: stock.run(None, peer, bare)))
    others: dict[str, generations.Run] = {STOCK: stock.run}
    others |= {p.name: lambda stop, p=p: stock.run(stop, p, setup) for p in peers}  # type: ignore[misc]
    found = generations.measure(job, models, others, repeat, announce, clock)
    by_name = {p.name: p for p in peers}
    sides = ({**r, "side": OURS if r["name"] in models else PEERS} for r in found)
    table = [_named(r, by_name.get(str(r["name"])), shipped, stock.said.get(str(r["name"]))) for r in sides]
    title = f"Speed and nearness to vanilla on {type(job.pipe.transformer).__name__}, the same seed and prompt"
    return Report(name, title, COLUMNS, with_plane(table), PLOT, settings(job, backend, repeat, clock))


def _named(row: Row, peer: Peer | None, shipped: str, warned: str | None) -> Row:
    """A peer's row with its method and a remark: its error, its warning, or what diffusers says to it as it ships."""
    if peer is None:
        return row
    remark = row["remark"] or warned or (f"as shipped: {shipped}" if peer.registered and shipped else None)
    return {**row, "kind": peer.kind, "remark": remark}


class Stock:
    """The pipeline with its own transformer; with a compiled backend its blocks, or their parts, are compiled.

    said: what a peer warned of while it ran, by its name.
    """

    def __init__(self, job: generations.GenerationJob, backend: str, announce: Announce) -> None:
        self._job, self._announce = job, announce
        self.said: dict[str, str] = {}
        blocks = job.pipe.transformer.blocks
        inner = [part for b in blocks for part in (b.attn1, b.attn2, b.ffn)]
        self._parts = {False: [*blocks], True: inner}  # by whether hooks lie inside the blocks: then those stay outside
        eager = backend == "eager"
        self._forwards = {k: [] if eager else compiled_forwards(parts) for k, parts in self._parts.items()}

    def run(self, stop: int | None, peer: Peer | None = None, setup: Setup | None = None) -> Generation:
        """One generation, under the peer if one is given."""
        pipe, name = self._job.pipe, peer.name if peer is not None else STOCK
        inside = peer is not None and peer.inside
        kept = left_clean(pipe.transformer)
        with kept, replaced(self._parts[inside], self._forwards[inside]), heard() as lines:
            try:
                if peer is not None and setup is not None:
                    peer.enable(setup)
                return generate(pipe, self._job.call, 0, self._announce(name), stop)
            finally:
                if peer is not None:
                    peer.disable(pipe)
                if lines:
                    self.said[name] = lines[0].replace("\n", " ")

    def rows_of_schedule(self) -> int:
        """Calls of the scheduler's loop in one generation."""
        seen = [0]
        generate(self._job.pipe, self._job.call, 0, lambda _, total: seen.append(total), stop_after=1)
        return seen[-1]
