"""`mccompile generate`: generates a video under a policy, or one video three ways, with a table that compares them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.batch import batch
from mccompile.cli.generate_job import GenerateJob, Take, check_options, job_of
from mccompile.cli.options import (
    POLICY_HELP,
    add_backend,
    add_parameters,
    add_place,
    add_video,
    location,
    positive,
)
from mccompile.cli.progress import display
from mccompile.cli.recording import record_comparison, record_single, watch_for_record
from mccompile.cli.resuming import journal_of, resumed
from mccompile.cli.table import table
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.bundles.bundle import Bundle
    from mccompile.generate.compare import Announce
    from mccompile.generate.run import Generation
    from mccompile.ir import PolicyIR
    from mccompile.runtime.compiled import CompiledModel
    from mccompile.studio.report.stopwatch import Stopwatch

DEFAULT_POLICY = "motioncache"


@dataclass(frozen=True, slots=True)
class Done:
    """A video that was made. computed: the share of its tokens that were computed, 0..1."""

    take: Take
    generation: Generation
    computed: float


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("generate", help="generate a video under a policy", description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("bundle", nargs="?", type=location, metavar="BUNDLE", help="what `mccompile compile` wrote")
    what.add_argument("--no-native", action="store_true", help="of a bundle only graphs: compile its code here")
    what.add_argument("--model", metavar="NAME", help="`embedded` or a diffusers folder; the bundle's by default")
    what.add_argument("--policy", metavar="POLICY", help=f"{POLICY_HELP}, or auto:GOAL; default: {DEFAULT_POLICY}")
    add_parameters(what)
    video = parser.add_argument_group("the video (what is left out is the model's own)")
    video.add_argument("--prompt", metavar="TEXT")
    video.add_argument("--prompts", type=location, metavar="FILE", help="a prompt a line: a video of each")
    video.add_argument("--num-videos", type=positive, default=1, metavar="N", help="of each prompt; the seed counts up")
    video.add_argument("--negative-prompt", metavar="TEXT")
    add_video(video)
    video.add_argument("--fps", type=positive, metavar="N", help="frame rate of the written file")
    how = parser.add_argument_group("how")
    add_place(how)
    how.add_argument("--cpu-offload", action="store_true", help="text encoder and VAE wait on the CPU")
    add_backend(how, "inductor")
    how.add_argument("--engine", choices=("local", "ray"), default="local", help="of --prompts; default: %(default)s")
    how.add_argument("--workers", type=positive, metavar="N", help="of ray; default: one per GPU, or per CPU")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--out", type=location, default=Path("out"), metavar="PATH", help="folder or .mp4; default: out")
    out.add_argument("--record", type=location, metavar="DIR", help="keep what `mccompile report` shows")
    out.add_argument("--no-thumbnails", action="store_true", help="of --record: without what each step predicts")
    out.add_argument("--resume", type=location, metavar="DIR", help="go on with a run of --record that was stopped")
    out.add_argument("--trace", type=location, metavar="FILE", help="write every decision of the policy as JSON lines")
    out.add_argument("--compare", action="store_true", help="also run vanilla and exact; print one table")
    out.add_argument("--repeat", type=positive, default=1, metavar="N", help="timed runs of each way; median shown")
    parser.set_defaults(run=run, picks={})


def run(arguments: argparse.Namespace) -> int:
    """Loads, compiles, generates, writes."""
    from mccompile.bundles.bundle import load_bundle
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.load import EMBEDDED
    from mccompile.generate.places import Use
    from mccompile.policy.bind import bind
    from mccompile.policy.text import read

    if arguments.resume is not None:
        arguments = resumed(arguments)
    logging.getLogger("mccompile").addHandler(logging.NullHandler())  # the last lines say it
    check_options(arguments)
    if arguments.bundle is not None:
        for option, given in (
            ("--policy", arguments.policy),
            ("--compare", arguments.compare),
            *((f"--set {name}={word}", True) for name, word in arguments.parameters if isinstance(word, str)),
            ("--backend eager", arguments.backend == "eager" and not arguments.no_native),
        ):
            if given:
                raise OptionRefused(option, "a bundle holds one policy, compiled", "leave out the option or the bundle")
        bundle = load_bundle(arguments.bundle, native=not arguments.no_native)
        model = bundle.model.reference if arguments.model is None else arguments.model
        files = [Use(f"{arguments.bundle}", arguments.bundle)]
        job = job_of(arguments, model, read(bundle.ir).name, files)
        return batch(job, read(bundle.ir)) if len(job.takes) > 1 else _from_bundle(job, bundle)
    if arguments.no_native:
        raise OptionRefused("--no-native", "it says how a bundle is read", "name a bundle, or leave it out")
    named = DEFAULT_POLICY if arguments.policy is None else arguments.policy
    model = EMBEDDED if arguments.model is None else arguments.model
    policy, arguments.parameters = _policy(arguments, model, named)
    bind(policy, dict(arguments.parameters))  # wrong parameters are told before a model is loaded
    job = job_of(arguments, model, policy.name, [Use(f"--policy {named}", Path(named))])
    if len(job.takes) > 1:
        return batch(job, policy)
    return (_compared if arguments.compare else _single)(job, policy)


def _policy(
    arguments: argparse.Namespace, model: str, named: str
) -> tuple[PolicyIR, tuple[tuple[str, float], ...]]:
    """The policy that is named, or the stored one that meets a goal; and the values of its parameters."""
    from mccompile.cli.automatic import AUTO, automatic
    from mccompile.policy.choosing import load_chosen

    if named.startswith(AUTO):
        return automatic(arguments, model, named)
    found = load_chosen(named, dict(arguments.parameters))
    arguments.picks = dict(found.picks)
    return found.policy, tuple(found.numbers.items())


def _single(job: GenerateJob, policy: PolicyIR) -> int:
    """One video under the policy."""
    from mccompile import api
    from mccompile.generate.compare import capture_for
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.run import call_arguments

    given, watch = job.arguments, _stopwatch()
    with display() as shown:
        with shown.stage("load the model"):
            pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        with shown.stage("capture the model"):
            captured = capture_for(pipe, call)
        model = api.compile(
            pipe,
            policy,
            backend=given.backend,
            captured=captured,
            deny_refusals=given.deny == "refusals",
            progress=shown.compiled,
            **dict(given.parameters),
        )
        model.undo()
        done = _run(job, pipe, model, call, watch.watch(shown.task))
    return _finish(job, model, done, watch, call)


def _from_bundle(job: GenerateJob, bundle: Bundle) -> int:
    """One video from what was compiled before."""
    from mccompile.generate.bundled import open_bundle
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.run import call_arguments
    from mccompile.pipelines.finding import driver_for

    given, watch = job.arguments, _stopwatch()
    with display() as shown:
        with shown.stage("load the model"):
            pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        driver_for(pipe).announce(pipe, call)  # a bundle asks for the configuration
        model = open_bundle(bundle, pipe, job.folder, dict(given.parameters), given.backend, shown.compiled)
        done = _run(job, pipe, model, call, watch.watch(shown.task))
    return _finish(job, model, done, watch, call)


def _run(
    job: GenerateJob, pipe: object, model: CompiledModel, call: Mapping[str, object], announce: Announce
) -> list[Done]:
    """Every video of the job, one after the other; kept as it goes under --record."""
    from mccompile.generate.compare import run_with
    from mccompile.runtime.trace import share_computed

    given, done = job.arguments, []
    if given.record is not None:
        watch_for_record(model, given)
    model.journal = journal_of(job, pipe, model)
    try:
        for take in job.takes:
            words = {} if take.prompt is None else {"prompt": take.prompt}
            made = run_with(pipe, model, {**call, **words}, take.seed, announce(take.name))
            done.append(Done(take, made, share_computed(model.events)))
        return done
    except KeyboardInterrupt:
        if given.record is not None:
            say(f"stopped: `mccompile generate --resume {given.record}` goes on with it")
        raise


def _finish(
    job: GenerateJob, model: CompiledModel, done: Sequence[Done], watch: Stopwatch, call: Mapping[str, object]
) -> int:
    """Says what was done and writes the files of the videos."""
    from mccompile.generate.outputs import write_trace, write_video

    given = job.arguments
    _first_line(model)
    for each in done:
        say(f"{each.generation.seconds:.2f} s, {each.computed:.1%} of the tokens computed")
        write_video(job.results, given.out, each.take.name, each.generation.video, job.fps)
    if given.trace is not None:
        write_trace(job.results, given.trace, model.events)
    if given.record is not None:
        record_single(job.results, given.record, model, done[0].generation, watch, job.about(call), job.fps)
    _last_line(model)
    job.results.finish()
    if model.journal is not None:
        model.journal.end()
    return 0


def _compared(job: GenerateJob, policy: PolicyIR) -> int:
    """Vanilla, exact and the policy, from one seed."""
    from mccompile.generate.compare import capture_for, compare, compile_contenders, contenders
    from mccompile.generate.load import load_pipeline
    from mccompile.generate.outputs import write_comparison, write_trace
    from mccompile.generate.run import call_arguments

    given, watch = job.arguments, _stopwatch()
    ways = contenders(policy, dict(given.parameters))
    with display() as shown:
        with shown.stage("load the model"):
            pipe = load_pipeline(job.folder, job.place)
        call = call_arguments(pipe, job.settings)
        with shown.stage("capture the model"):
            captured = capture_for(pipe, call)
        deny = given.deny == "refusals"
        models = compile_contenders(pipe, captured, ways, given.backend, shown.compiled, deny)
        if given.record is not None:
            watch_for_record(models[ways[-1].name], given)
        found = compare(pipe, models, call, given.seed, given.repeat, watch.watch(shown.task), job.judged)
    _first_line(models[ways[-1].name])
    for line in table(found):
        say(line)
    about = job.about(call)
    write_comparison(job.results, given.out, found, job.fps, about)
    if given.trace is not None:
        write_trace(job.results, given.trace, found.events[ways[-1].name])
    if given.record is not None:
        record_comparison(job.results, given.record, models, found, watch, about, job.fps)
    _last_line(models[ways[-1].name])
    job.results.finish()
    return 0


def _stopwatch() -> Stopwatch:
    from mccompile.studio.report.stopwatch import Stopwatch

    return Stopwatch()


def _last_line(model: CompiledModel) -> None:
    """What must be known of the run is said where it is seen: a policy that had no effect, odd results."""
    for warning in model.summary().warnings:
        say(warning)


def _first_line(model: CompiledModel) -> None:
    """Whether the policy changes numbers at all, and what of it was refused."""
    from mccompile.generate.compare import announce

    say(announce(model))
    for refusal in model.refusals:
        say(f"refused {refusal.site}: {refusal.reason}")
