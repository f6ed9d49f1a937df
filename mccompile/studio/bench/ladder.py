"""`bench ladder`: vanilla eager, vanilla compiled, exact, then policies: is the time saved that the work says?"""

from __future__ import annotations

from collections.abc import Sequence

from mccompile.generate.compare import Announce, Contender
from mccompile.lowering.backend import Progress
from mccompile.studio.bench import generations
from mccompile.studio.bench.report import Column, Json, Plot, Report

COLUMNS = (
    Column("name", "run"), Column("median", "s", ".2f"), Column("ms", "ms per call", ".1f"),
    Column("tokens", "tokens", ".1%"), Column("flops", "FLOPs", ".1%"), Column("speed_up", "speed-up", ".2f"),
    Column("realised_over_ideal", "realised/ideal", ".2f"), Column("psnr", "PSNR (dB)", ".1f"),
    Column("ssim", "SSIM", ".3f"), Column("judge", "prompt followed"),
)  # fmt: skip
PLOT = Plot("flops", "speed_up", "share of vanilla's FLOPs", "speed-up over vanilla", "kind", True, True)


def report(
    job: generations.Job,
    ways: Sequence[Contender],
    backend: str,
    repeat: int,
    announce: Announce,
    progress: Progress | None = None,
) -> Report:
    """Whole generations of the pipeline, text encoder and VAE included, one row per way."""
    found = generations.run(job, ways, backend, repeat, announce, progress)
    kind = type(job.pipe.transformer).__name__
    title = f"Whole generations of {kind}, the same seed and prompt"
    return Report("ladder", title, COLUMNS, generations.rows(found), PLOT, settings(job, backend, repeat))


def settings(job: generations.Job, backend: str, repeat: int) -> dict[str, Json]:
    """What every way was called with."""
    call = {n: v for n, v in job.call.items() if isinstance(v, str | int | float)}
    return {"backend": backend, "repeat": repeat, "call": call}
