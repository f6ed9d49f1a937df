"""`generate --record`: what a run keeps while it runs, how it is gone on with, and the folder that is written of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

PAGE = "report.html"

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mccompile.cli.generate_job import GenerateJob
    from mccompile.generate.compare import Comparison
    from mccompile.generate.journal import Journal
    from mccompile.generate.places import Results
    from mccompile.generate.run import Generation
    from mccompile.runtime.compiled import CompiledModel
    from mccompile.studio.report.record import Stopwatch, Way


def resumed(arguments: argparse.Namespace) -> argparse.Namespace:
    """The options that the run in `--resume DIR` was begun with.

    Raises OptionRefused (MC0705) for options beside it and for another folder, NothingToResume (MC0718).
    """
    from mccompile.cli.parser import build_parser
    from mccompile.generate.errors import NothingToResume, OptionRefused
    from mccompile.generate.journal import read_begun

    record, parser = arguments.resume, build_parser()
    alone = parser.parse_args(["generate", "--resume", str(record)], argparse.Namespace(words=arguments.words))
    if arguments != alone:
        raise OptionRefused("--resume", "a run goes on with the options that it was begun with", "leave out all others")
    begun = read_begun(record)
    if Path(begun.folder) != Path.cwd():
        raise OptionRefused(f"--resume {record}", f"the run was begun in `{begun.folder}`", "go there first")
    try:
        found = parser.parse_args(list(begun.words), argparse.Namespace(words=begun.words))
    except SystemExit as stop:
        raise NothingToResume(str(record), "its command line is none of `mccompile generate`") from stop
    if begun.words[:1] != ("generate",) or found.record is None or found.record.resolve() != record.resolve():
        raise NothingToResume(str(record), "its command line records no run there")
    found.resume = record
    return found


def journal_of(job: GenerateJob, pipe: object, model: CompiledModel) -> Journal | None:
    """What keeps the calls of a run under `--record`, or goes on with those that were kept. Raises as Journal does."""
    from mccompile.bundles.identity import environment, identify
    from mccompile.generate.bundled import transformer_folder
    from mccompile.generate.errors import OutputRefused
    from mccompile.generate.journal import FORMAT, Begun, Journal
    from mccompile.generate.places import reason
    from mccompile.policy.text import show

    given, bound = job.arguments, model.runner.bound
    if given.record is None:
        return None
    device = job.place.device.partition(":")[0]
    begun = Begun(
        format=FORMAT, words=given.words, folder=str(Path.cwd()), made_on=environment(device),
        model=identify(model.model, job.model, transformer_folder(job.folder)), policy=show(bound.ir),
        parameters=tuple((n, float(v)) for n, v in bound.values.items()), threads=torch_threads(),
    )  # fmt: skip
    replayable = getattr(model.model, "key_values_argument", None) is None
    try:
        return Journal(given.record, begun, replayable, given.resume is not None)
    except OSError as error:
        raise OutputRefused(str(given.record), reason(error)) from None


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


def torch_threads() -> int:
    """How many threads sums are split over."""
    import torch

    return torch.get_num_threads()


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
        refusals=tuple(f"{r.site}: {r.reason}" for r in model.runner.lowered.refusals),
        fps=fps,
        ways=tuple(ways),
        videos=videos,
        events=tuple(model.events),
        masks=masks_of(model.events, model.runner.masks or ()),
    )
    for name, write in record.files().items():
        results.put(folder / name, write)
    results.put(folder / PAGE, lambda path: write_page(record, path))
