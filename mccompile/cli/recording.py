"""`generate --record`: the folder that is written of a run, and its page."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

PAGE = "report.html"

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mccompile.generate.compare import Comparison, ComparisonRow
    from mccompile.generate.places import Results
    from mccompile.generate.run import Generation
    from mccompile.runtime.compiled import CompiledModel
    from mccompile.studio.report.record import Way
    from mccompile.studio.report.stopwatch import Stopwatch


def watch_for_record(model: CompiledModel, arguments: argparse.Namespace) -> None:
    """Has the run watched that the command line asks to record."""
    from mccompile.studio.report.recorded import watch

    watch(model, thumbnails=not arguments.no_thumbnails)


def record_single(
    results: Results,
    folder: Path,
    model: CompiledModel,
    done: Generation,
    watch: Stopwatch,
    about: Mapping[str, object],
    fps: int,
) -> None:
    """Writes the record of one generation."""
    from mccompile.runtime.trace import share_computed
    from mccompile.studio.report.record import Way, as_bytes

    name = model.runner.lowered.policy.name
    way = Way(name, name, done.seconds, share_computed(model.events), None, watch.of(name))
    _write(results, folder, model, (way,), as_bytes([done.video]), about, fps)


def record_comparison(
    results: Results,
    folder: Path,
    models: Mapping[str, CompiledModel],
    found: Comparison,
    watch: Stopwatch,
    about: Mapping[str, object],
    fps: int,
) -> None:
    """Writes the record of a comparison."""
    from mccompile.studio.report.record import as_bytes

    ways = tuple(_way(r, found, watch) for r in found.rows)
    videos = as_bytes([found.videos[way.name] for way in ways])
    _write(results, folder, models[ways[-1].name], ways, videos, about, fps)


def _way(row: ComparisonRow, found: Comparison, watch: Stopwatch) -> Way:
    from mccompile.studio.report.record import Way

    steps, flops = watch.of(row.name), found.step_flops[row.name]
    return Way(row.name, row.policy, row.median, row.tokens, row.flops, steps, flops)


def _write(
    results: Results, folder: Path, model: CompiledModel, ways: Sequence[Way], videos: tuple[NDArray[np.uint8], ...],
    about: Mapping[str, object], fps: int,
) -> None:  # fmt: skip
    from mccompile.studio.report.page import write_page
    from mccompile.studio.report.recorded import record_of

    record = record_of(model, ways, videos, about, fps)
    for name, write in record.files().items():
        results.put(folder / name, write)
    results.put(folder / PAGE, lambda path: write_page(record, path))
