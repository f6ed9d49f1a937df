"""`mccompile generate`: generates a video under a policy, or one video three ways, with a table that compares them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.options import (
    POLICY_HELP,
    add_backend,
    add_parameters,
    add_place,
    add_video,
    positive,
    video_settings,
)
from mccompile.cli.progress import display
from mccompile.cli.recording import record_comparison, record_single
from mccompile.cli.table import table
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.bundles.bundle import Bundle
    from mccompile.generate.load import Placement
    from mccompile.generate.run import Generation, Settings
    from mccompile.ir import PolicyIR
    from mccompile.runtime.compiled import CompiledModel
    from mccompile.studio.report.record import Stopwatch

DEFAULT_POLICY = "motioncache"
DEFAULT_FPS = 24  # of every family but the embedded model's


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("generate", help="generate a video under a policy", description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE", help="what `mccompile compile` wrote")
    what.add_argument("--no-native", action="store_true", help="of a bundle only graphs: compile its code here")
    what.add_argument("--model", metavar="NAME", help="`embedded` or a diffusers folder; the bundle's by default")
    what.add_argument("--policy", metavar="POLICY", help=f"{POLICY_HELP}; default: {DEFAULT_POLICY}")
    add_parameters(what)
    video = parser.add_argument_group("the video (what is left out is the model's own)")
    video.add_argument("--prompt", metavar="TEXT")
    video.add_argument("--negative-prompt", metavar="TEXT")
    add_video(video)
    video.add_argument("--fps", type=positive, metavar="N", help="frame rate of the written file")
    how = parser.add_argument_group("how")
    add_place(how)
    how.add_argument("--cpu-offload", action="store_true", help="text encoder and VAE wait on the CPU")
    add_backend(how, "inductor")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--out", type=Path, default=Path("out"), metavar="PATH", help="folder or .mp4; default: out")
    out.add_argument("--record", type=Path, metavar="DIR", help="keep what `mccompile report` shows")
    out.add_argument("--trace", type=Path, metavar="FILE", help="write every decision of the policy as JSON lines")
    out.add_argument("--compare", action="store_true", help="also run vanilla and exact; print one table")
    out.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed runs of each way; median shown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Loads, compiles, generates, writes."""
    from mccompile.bundles.bundle import load_bundle
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.outputs import prepare_place
    from mccompile.language.load import load_policy
    from mccompile.policy.bind import bind

    logging.getLogger("mccompile").addHandler(logging.NullHandler())  # the last line says it
    if arguments.out.suffix not in ("", ".mp4"):
        raise OptionRefused(f"--out {arguments.out}", "it is neither a folder nor an .mp4", "give a folder or x.mp4")
    if arguments.compare and arguments.out.suffix:
        raise OptionRefused("--out FILE", "a comparison writes several files", "give --out a folder")
    if arguments.bundle is not None:
        for option, given in (
            ("--policy", arguments.policy),
            ("--compare", arguments.compare),
            ("--backend eager", arguments.backend == "eager" and not arguments.no_native),
        ):
            if given:
                raise OptionRefused(option, "a bundle holds one policy, compiled", "leave out the option or the bundle")
        bundle = load_bundle(arguments.bundle, native=not arguments.no_native)
        job = _job(arguments, arguments.model or bundle.model.reference)
        prepare_place(arguments.out)
        return _from_bundle(job, bundle)
    if arguments.no_native:
        raise OptionRefused("--no-native", "it says how a bundle is read", "name a bundle, or leave it out")
    policy = load_policy(arguments.policy or DEFAULT_POLICY)
    bind(policy, dict(arguments.parameters))  # wrong parameters are told before a model is loaded
    job = _job(arguments, arguments.model or "embedded")
    prepare_place(arguments.out)
    return (_compared if arguments.compare else _single)(job, policy)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    model: str
    folder: Path
    place: Placement
    settings: Settings
    fps: int
    judged: str | None
    arguments: argparse.Namespace


def _job(arguments: argparse.Namespace, model: str) -> _Job:
    from mccompile.generate.compare import can_judge
    from mccompile.generate.load import EMBEDDED, Placement, find_folder
    from mccompile.models.embedded import DEFAULTS

    folder = find_folder(model)
    embedded = model == EMBEDDED
    settings = _settings(arguments, embedded)
    return _Job(
        model=model,
        folder=folder,
        place=Placement.of(arguments.device, arguments.dtype, arguments.cpu_offload),
        settings=settings,
        fps=arguments.fps or (DEFAULTS.fps if embedded else DEFAULT_FPS),
        judged=settings.prompt if embedded and can_judge(settings.prompt) else None,
        arguments=arguments,
    )


def _settings(arguments: argparse.Namespace, embedded: bool) -> Settings:
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


def _single(job: _Job, policy: PolicyIR) -> int:
    """One video under the policy."""
    from mccompile import api
    from mccompile.generate.compare import capture_for, run_with
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.run import call_arguments

    given, watch = job.arguments, _stopwatch()
    with display() as shown:
        pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        model = api.compile(
            pipe,
            policy,
            backend=given.backend,
            captured=capture_for(pipe, call),
            deny_refusals=given.deny == "refusals",
            progress=shown.compiled,
            **dict(given.parameters),
        )
        model.undo()
        model.runner.masks = None if given.record is None else []
        done = run_with(pipe, model, call, given.seed, watch.watch(shown.task)(policy.name))
    _finish(job, policy, model, done)
    if given.record is not None:
        record_single(given.record, model, done, watch, _about(job, policy, call), job.fps)
    return 0


def _from_bundle(job: _Job, bundle: Bundle) -> int:
    """One video from what was compiled before."""
    from mccompile.generate.bundled import open_bundle
    from mccompile.generate.compare import run_with
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.run import call_arguments
    from mccompile.pipelines.finding import driver_for

    given, watch = job.arguments, _stopwatch()
    with display() as shown:
        pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        driver_for(pipe).announce(pipe, call)  # a bundle asks for the configuration
        model = open_bundle(
            bundle, pipe, job.folder, dict(given.parameters), given.backend, shown.compiled
        )
        policy = model.runner.lowered.policy
        model.runner.masks = None if given.record is None else []
        done = run_with(pipe, model, call, given.seed, watch.watch(shown.task)(policy.name))
    _finish(job, policy, model, done)
    if given.record is not None:
        record_single(given.record, model, done, watch, _about(job, policy, call), job.fps)
    return 0


def _finish(job: _Job, policy: PolicyIR, model: CompiledModel, done: Generation) -> None:
    """Says what was done and writes the files of one generation."""
    from mccompile.generate.outputs import write_trace, write_video
    from mccompile.runtime.trace import share_computed

    given = job.arguments
    _first_line(model)
    say(f"{done.seconds:.2f} s, {share_computed(model.events):.1%} of the tokens computed")
    if given.trace is not None:
        write_trace(given.trace, model.events)
        say(f"wrote {given.trace}")
    for path in write_video(given.out, policy.name, done.video, job.fps):
        say(f"wrote {path}")
    _last_line(model)


def _compared(job: _Job, policy: PolicyIR) -> int:
    """Vanilla, exact and the policy, from one seed."""
    from mccompile.generate.compare import capture_for, compare, compile_contenders, contenders
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.outputs import write_comparison, write_trace
    from mccompile.generate.run import call_arguments

    given, watch = job.arguments, _stopwatch()
    ways = contenders(policy, dict(given.parameters))
    with display() as shown:
        pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        captured = capture_for(pipe, call)
        deny = given.deny == "refusals"
        models = compile_contenders(pipe, captured, ways, given.backend, shown.compiled, deny)
        models[ways[-1].name].runner.masks = None if given.record is None else []
        found = compare(pipe, models, call, given.seed, given.repeat, watch.watch(shown.task), job.judged)
    _first_line(models[ways[-1].name])
    for line in table(found):
        say(line)
    if given.trace is not None:
        write_trace(given.trace, found.events[ways[-1].name])
        say(f"wrote {given.trace}")
    about = _about(job, policy, call)
    for path in write_comparison(given.out, found, job.fps, about):
        say(f"wrote {path}")
    if given.record is not None:
        record_comparison(given.record, models, found, watch, about, job.fps)
    _last_line(models[ways[-1].name])
    return 0


def _about(job: _Job, policy: PolicyIR, call: Mapping[str, object]) -> dict[str, object]:
    """The settings of a run, for JSON."""
    given = job.arguments
    return {
        "model": job.model,
        "policy": policy.name,
        "parameters": dict(given.parameters),
        "backend": given.backend,
        "seed": given.seed,
        "call": dict(call),
    }


def _stopwatch() -> Stopwatch:
    from mccompile.studio.report.record import Stopwatch

    return Stopwatch()


def _last_line(model: CompiledModel) -> None:
    """A policy that had no effect says so where it is seen."""
    if model.summary().inert:
        say(model.summary().inert)


def _first_line(model: CompiledModel) -> None:
    """Whether the policy changes numbers at all, and what of it was refused."""
    from mccompile.generate.compare import announce

    say(announce(model))
    for refusal in model.runner.lowered.refusals:
        say(f"refused {refusal.site}: {refusal.reason}")
