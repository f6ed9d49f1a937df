"""`generate --record`: the folder that is written of a run, and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

PAGE = "report.html"

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mccompile.generate.compare import Comparison
    from mccompile.generate.places import Results
    from mccompile.generate.run import Generation
    from mccompile.runtime.compiled import CompiledModel
    from mccompile.studio.report.record import Stopwatch, Way


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
    from mccompile.studio.report.record import Way, as_bytes

    ways = tuple(Way(r.name, r.policy, r.median, r.tokens, r.flops, watch.of(r.name)) for r in found.rows)
    videos = as_bytes([found.videos[way.name] for way in ways])
    _write(results, folder, models[ways[-1].name], ways, videos, about, fps)


def _write(
    results: Results, folder: Path, model: CompiledModel, ways: Sequence[Way], videos: tuple[NDArray[np.uint8], ...],
    about: Mapping[str, object], fps: int,
) -> None:  # fmt: skip
    from mccompile.generate.compare import announce
    from mccompile.studio.report.page import write_page
    from mccompile.studio.report.record import Record, masks_of

    record = Record(
        about=about,
        said=announce(model),
        refusals=tuple(f"{r.site}: {r.reason}" for r in model.refusals),
        fps=fps,
        ways=tuple(ways),
        videos=videos,
        events=tuple(model.events),
        masks=masks_of(model.events, model.runner.masks or ()),
    )
    for name, write in record.files().items():
        results.put(folder / name, write)
    results.put(folder / PAGE, lambda path: write_page(record, path))
