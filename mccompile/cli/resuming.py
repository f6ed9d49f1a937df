"""`generate --record` keeps a run while it is made, and `generate --resume` goes on with one that was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.cli.generate_job import GenerateJob
    from mccompile.generate.journal import Journal
    from mccompile.runtime.compiled import CompiledModel


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
        models=tuple(
            identify(each.model, job.model, transformer_folder(job.folder, each.slot)) for each in model.experts
        ),
        policy=show(bound.ir),
        parameters=tuple((n, float(v)) for n, v in bound.values.items()), threads=_threads(),
    )  # fmt: skip
    replayable = getattr(model.model, "key_values_argument", None) is None
    try:
        return Journal(given.record, begun, replayable, given.resume is not None, say)
    except OSError as error:
        raise OutputRefused(str(given.record), reason(error)) from None


def _threads() -> int:
    """How many threads sums are split over."""
    import torch

    return torch.get_num_threads()
