"""What one `mccompile generate` is asked to do, checked before any work: model, place, settings, files."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.options import check_fps, check_video, video_settings
from mccompile.cli.recording import PAGE
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.generate.placement import Placement
    from mccompile.generate.places import Results, Use
    from mccompile.generate.run import Settings

DEFAULT_FPS = 24  # of every family but the embedded model's


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """One generation, or one comparison. policy: its name. judged: the prompt that the judge holds videos against."""

    model: str
    policy: str
    folder: Path
    place: Placement
    settings: Settings
    fps: int
    judged: str | None
    results: Results
    arguments: argparse.Namespace

    def about(self, call: Mapping[str, object]) -> dict[str, object]:
        """The settings of the run, for JSON."""
        given = self.arguments
        return {
            "model": self.model,
            "policy": self.policy,
            "parameters": {**dict(given.parameters), **given.picks},
            "backend": given.backend,
            "seed": given.seed,
            "call": dict(call),
        }


def check_options(arguments: argparse.Namespace) -> None:
    """Raises OptionRefused (MC0705) for options that mean nothing, alone or together."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.journal import FOLDER

    if arguments.out.suffix not in ("", ".mp4"):
        raise OptionRefused(f"--out {arguments.out}", "it is neither a folder nor an .mp4", "give a folder or x.mp4")
    if arguments.compare and arguments.out.suffix:
        raise OptionRefused("--out FILE", "a comparison writes several files", "give --out a folder")
    if arguments.repeat > 1 and not arguments.compare:
        raise OptionRefused("--repeat", "only a comparison is timed", "add --compare, or leave --repeat out")
    if arguments.record is not None and arguments.resume is None and (arguments.record / FOLDER).exists():
        why = "the folder holds a run that was stopped"
        raise OptionRefused(f"--record {arguments.record}", why, "go on with it by --resume, or remove the folder")
    check_video(arguments)
    check_fps(arguments.fps)
    check_batch(arguments)


def check_batch(arguments: argparse.Namespace) -> None:
    """Raises OptionRefused (MC0705) for options of a batch without one, or that belong to one video alone."""
    from mccompile.generate.errors import OptionRefused

    if arguments.prompts is None:
        for option, given in (("--engine ray", arguments.engine == "ray"), ("--workers", arguments.workers)):
            if given:
                raise OptionRefused(option, "it shares a batch of prompts out", "give --prompts FILE")
        return
    alone = {
        "--prompt": arguments.prompt is not None,
        "--compare": arguments.compare,
        "--record": arguments.record is not None,
        "--trace": arguments.trace is not None,
        f"--out {arguments.out}": bool(arguments.out.suffix),
    }
    for option, given in alone.items():
        if given:
            raise OptionRefused(option, "a batch makes a video of each prompt in a folder", "leave out one of the two")


def job_of(arguments: argparse.Namespace, model: str, policy: str, reads: Sequence[Use]) -> GenerateJob:
    """The job of a command line. Raises what is wrong with its model, its settings and the files that it will write."""
    from mccompile.generate.compare import can_judge
    from mccompile.generate.load import EMBEDDED, find_folder
    from mccompile.generate.placement import Placement
    from mccompile.generate.places import Results, check_places
    from mccompile.models.embedded import DEFAULTS

    folder = find_folder(model)
    embedded = model == EMBEDDED
    settings = settings_of(arguments, embedded)
    place = Placement.of(arguments.device, arguments.dtype, arguments.cpu_offload)
    check_places(_writes(arguments, policy), reads)
    return GenerateJob(
        model=model,
        policy=policy,
        folder=folder,
        place=place,
        settings=settings,
        fps=arguments.fps or (DEFAULTS.fps if embedded else DEFAULT_FPS),
        judged=settings.prompt if embedded and can_judge(settings.prompt) else None,
        results=Results(say),
        arguments=arguments,
    )


def settings_of(arguments: argparse.Namespace, embedded: bool) -> Settings:
    """What the videos of a command line are made with. Raises OptionRefused where a prompt is missing."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.run import EMBEDDED_SETTINGS

    given = dataclasses.replace(
        video_settings(arguments), prompt=arguments.prompt, negative_prompt=arguments.negative_prompt
    )
    if embedded:
        return dataclasses.replace(EMBEDDED_SETTINGS, **given.given())  # type: ignore[arg-type]
    if given.prompt is None:
        raise OptionRefused("generate without --prompt", "only the embedded model has one of its own", "give --prompt")
    return given


def _writes(arguments: argparse.Namespace, policy: str) -> list[Use]:
    """Every file that the command will write."""
    from mccompile.generate.compare import named_apart
    from mccompile.generate.outputs import comparison_files, single_files
    from mccompile.generate.places import Use
    from mccompile.studio.report.record import FILES

    out = arguments.out
    files = comparison_files(out, named_apart(policy)) if arguments.compare else single_files(out, policy)
    writes = [Use(f"--out {out}", path) for path in files]
    if arguments.trace is not None:
        writes.append(Use(f"--trace {arguments.trace}", arguments.trace))
    if arguments.record is not None:
        writes += [Use(f"--record {arguments.record}", arguments.record / name) for name in (*FILES, PAGE)]
    return writes
