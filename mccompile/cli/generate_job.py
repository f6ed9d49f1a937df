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
class Take:
    """One video of a generation. name: of its file, and of what is shown while it is made."""

    name: str
    prompt: str | None
    seed: int


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """One generation, or one comparison. policy: its name. judged: the prompt that the judge holds videos against.

    takes: the videos, each of a prompt and a seed; a comparison has one.
    """

    model: str
    policy: str
    folder: Path
    place: Placement
    settings: Settings
    fps: int
    judged: str | None
    results: Results
    arguments: argparse.Namespace
    takes: tuple[Take, ...]

    def about(self, call: Mapping[str, object]) -> dict[str, object]:
        """The settings of the run, for JSON; images and videos as their files."""
        given, files = self.arguments, {"image", "last_image", "video"} & call.keys()
        return {
            "model": self.model,
            "policy": self.policy,
            "parameters": {**dict(given.parameters), **given.picks},
            "backend": given.backend,
            "seed": given.seed,
            "call": {**call, **{name: str(self.settings.given()[name]) for name in files}},
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
    if arguments.no_thumbnails and arguments.record is None:
        raise OptionRefused("--no-thumbnails", "nothing is recorded without --record", "add --record, or leave it out")
    if arguments.record is not None and arguments.resume is None and (arguments.record / FOLDER).exists():
        why = "the folder holds a run that was stopped"
        raise OptionRefused(f"--record {arguments.record}", why, "go on with it by --resume, or remove the folder")
    if arguments.prompt is not None and arguments.prompts is not None:
        raise OptionRefused("--prompts", "--prompt gives the prompt", "leave out one of the two")
    alone = {
        "--compare": arguments.compare, "--trace": arguments.trace, "--record": arguments.record,
        "--out FILE": arguments.out.suffix,
    }  # fmt: skip
    several = "--prompts" if arguments.prompts is not None else "--num-videos" if arguments.num_videos > 1 else ""
    for option, given in alone.items():
        if several and given:
            raise OptionRefused(
                option, f"it is of one video, and {several} asks for several", "leave out one of the two"
            )
    for option, given in (("--engine ray", arguments.engine == "ray"), ("--workers", arguments.workers is not None)):
        if given and not several:
            raise OptionRefused(option, "it shares several videos out", "give --prompts FILE or --num-videos N")
    check_video(arguments)
    check_fps(arguments.fps)


def job_of(arguments: argparse.Namespace, model: str, policy: str, reads: Sequence[Use]) -> GenerateJob:
    """The job of a command line. Raises what is wrong with its model, its settings and the files that it will write."""
    from mccompile.generate.compare import can_judge
    from mccompile.generate.load import EMBEDDED, find_folder
    from mccompile.generate.placement import Placement
    from mccompile.generate.places import Results, check_places
    from mccompile.models.embedded import DEFAULTS

    folder = find_folder(model)
    embedded = model == EMBEDDED
    takes = takes_of(arguments, policy)
    settings = settings_of(arguments, embedded, takes[0].prompt)
    place = Placement.of(arguments.device, arguments.dtype, arguments.cpu_offload)
    check_places(_writes(arguments, policy, takes), reads)
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
        takes=takes,
    )


def takes_of(arguments: argparse.Namespace, policy: str) -> tuple[Take, ...]:
    """A video for each prompt and each of `--num-videos` seeds. Raises OptionRefused (MC0705)."""
    from mccompile.generate.media import read_prompts

    prompts = (arguments.prompt,) if arguments.prompts is None else read_prompts(arguments.prompts)
    pairs = [(prompt, arguments.seed + n) for prompt in prompts for n in range(arguments.num_videos)]
    if len(pairs) == 1:
        return (Take(policy, *pairs[0]),)
    digits = len(str(len(pairs)))
    return tuple(Take(f"{policy}_{number:0{digits}}", *pair) for number, pair in enumerate(pairs, 1))


def settings_of(arguments: argparse.Namespace, embedded: bool, prompt: str | None) -> Settings:
    """What the videos of a command line are made with. Raises OptionRefused (MC0705) where a prompt is missing."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.run import EMBEDDED_SETTINGS

    given = dataclasses.replace(video_settings(arguments), prompt=prompt, negative_prompt=arguments.negative_prompt)
    if embedded:
        return dataclasses.replace(EMBEDDED_SETTINGS, **given.given())  # type: ignore[arg-type]
    if given.prompt is None:
        raise OptionRefused("generate without --prompt", "only the embedded model has one of its own", "give --prompt")
    return given


def _writes(arguments: argparse.Namespace, policy: str, takes: Sequence[Take]) -> list[Use]:
    """Every file that the command will write."""
    from mccompile.generate.compare import named_apart
    from mccompile.generate.outputs import comparison_files, single_files
    from mccompile.generate.places import Use
    from mccompile.studio.report.record import FILES

    out = arguments.out
    single = [path for take in takes for path in single_files(out, take.name)]
    files = comparison_files(out, named_apart(policy)) if arguments.compare else single
    writes = [Use(f"--out {out}", path) for path in files]
    if arguments.trace is not None:
        writes.append(Use(f"--trace {arguments.trace}", arguments.trace))
    if arguments.record is not None:
        writes += [Use(f"--record {arguments.record}", arguments.record / name) for name in (*FILES, PAGE)]
    return writes
