"""`bench ladder`: baselines, exact, then policies. Does the time fall as much as the work?

The baselines are vanilla (our compiled graph), the same eager, and the stock pipeline: eager, and under torch.compile
as a whole and block by block.
"""

from __future__ import annotations

from collections.abc import Sequence

from mccompile.backend.inductor import Progress
from mccompile.generate.compare import Announce, Contender, compile_contenders
from mccompile.studio.bench import generations
from mccompile.studio.bench.report import Column, Json, Plot, Report
from mccompile.studio.bench.stock import baselines
from mccompile.studio.bench.timing import CallTimer

COLUMNS = (
    Column("name", "run"), Column("median", "s", ".2f"), Column("ms", "ms per call", ".1f"),
    Column("tokens", "tokens", ".1%"), Column("flops", "FLOPs", ".1%"), Column("speed_up", "speed-up", ".2f"),
    Column("realised_over_ideal", "realised/ideal", ".2f"), Column("psnr", "PSNR (dB)", ".1f"),
    Column("ssim", "SSIM", ".3f"), Column("judge", "prompt followed"),
)  # fmt: skip
PLOT = Plot("flops", "speed_up", "share of vanilla's FLOPs", "speed-up over vanilla", "kind", True, True)


def report(
    job: generations.GenerationJob,
    ways: Sequence[Contender],
    backend: str,
    repeat: int,
    clock: CallTimer,
    announce: Announce,
    progress: Progress | None = None,
) -> Report:
    """Whole generations of the pipeline, text encoder and VAE included, one row per way; ways: vanilla the first."""
    models = compile_contenders(job.pipe, job.captured, ways, backend, progress)
    if backend != "eager":
        plain = Contender(generations.EAGER, ways[0].policy, {})
        models |= compile_contenders(job.pipe, job.captured, [plain], "eager", None)
    stock = baselines(job, announce, backend != "eager")
    rows = generations.measure(job, models, stock, repeat, announce, clock)
    title = f"Whole generations of {type(job.pipe.transformer).__name__}, the same seed and prompt"
    return Report("ladder", title, COLUMNS, rows, PLOT, settings(job, backend, repeat, clock))


def settings(job: generations.GenerationJob, backend: str, repeat: int, clock: CallTimer) -> dict[str, Json]:
    """What every way was called with."""
    call = {n: v for n, v in job.call.items() if isinstance(v, str | int | float)}
    return {"backend": backend, "repeat": repeat, "clock": clock.kind, "call": call}
