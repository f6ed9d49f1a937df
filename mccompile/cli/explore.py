"""`mccompile explore`: searches the parameters of policies for speed against quality."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.metrics import VBENCH_HELP
from mccompile.cli.options import (
    POLICY_HELP,
    add_backend,
    add_parameters,
    add_place,
    add_video,
    location,
    positive,
    vbench_dimensions,
)
from mccompile.cli.progress import display
from mccompile.cli.study import study_of
from mccompile.cli.terminal import aligned, say

if TYPE_CHECKING:
    from mccompile.studio.explore.goals import Goal
    from mccompile.studio.explore.job import Job
    from mccompile.studio.explore.outcome import Trial
    from mccompile.studio.explore.rig import Work
    from mccompile.studio.explore.search import Found
    from mccompile.studio.explore.study import Failed

INTERRUPTED = 130
SAMPLERS = ("tpe", "nsga2", "random", "grid")
ENGINES = ("local", "ray")


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("explore", help="search parameters for speed against quality", description=__doc__)
    parser.add_argument("policy", nargs="?", metavar="POLICY", help=POLICY_HELP)
    parser.add_argument("--policies", metavar="A,B,C", help="several policies, compared on one plane")
    parser.add_argument("--emit", action="append", default=[], metavar="GOAL", help=GOAL_HELP)
    parser.add_argument("--static", type=positive, action="append", default=[], metavar="STEPS", help=STATIC_HELP)
    parser.add_argument("--trials", type=positive, default=20, metavar="N", help="of the study; default: %(default)s")
    add_search(parser)
    parser.set_defaults(run=run)


STATIC_HELP = "also the best static schedule that computes so many steps, as a policy file; may be repeated"
GOAL_HELP = "write a policy: `fastest above 30 dB`, `best above 4x`, `fastest above judge 1.0`; may be repeated"


def add_search(parser: argparse.ArgumentParser) -> None:
    """What `explore` and `tune` have in common."""
    parser.add_argument("--model", default="embedded", metavar="NAME", help="`embedded` (default) or a folder")
    parser.add_argument("--prompts", type=location, metavar="FILE", help="a prompt a line; default: the model's own")
    parser.add_argument("--held-out", type=location, metavar="FILE", help="default: the last quarter of the prompts")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="default: %(default)s")
    parser.add_argument("--each", type=positive, default=4, metavar="N", help="values of each parameter in a grid")
    parser.add_argument("--out", type=location, metavar="DIR", help="default: out/explore; the study goes on there")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where trials run; default: %(default)s")
    parser.add_argument("--workers", type=positive, metavar="N", help="of ray; default: one per GPU, or per CPU")
    parser.add_argument("--at-once", type=positive, metavar="N", help="trials begun together; default: 1, or --workers")
    parser.add_argument("--lpips", action="store_true", help="also measure LPIPS (an extra, with its own weights)")
    parser.add_argument("--vbench", type=vbench_dimensions, default=(), metavar="A,B", help=VBENCH_HELP)
    parser.add_argument("--store", action="store_true", help="keep the front for `generate --policy auto:30dB`")
    add_parameters(parser)
    add_video(parser.add_argument_group("the video (what is left out is the model's own)"))
    how = parser.add_argument_group("how")
    add_place(how)
    add_backend(how, "inductor")


def run(arguments: argparse.Namespace) -> int:
    """Searches; prints a line per trial, the Pareto front, what was done, and the policies that were asked for."""
    from mccompile.generate.errors import OptionRefused

    bases = tuple(b.strip() for b in (arguments.policies or "").split(",") if b.strip())
    if bool(bases) == (arguments.policy is not None):
        raise OptionRefused("explore", "it searches one POLICY or several --policies", "give one of the two")
    job = job_of(arguments, bases or (arguments.policy,), goals_of(arguments.emit), arguments.trials)
    job = replace(job, statics=tuple(dict.fromkeys(arguments.static)))
    found = carry_out(job, None, arguments.store)
    return INTERRUPTED if found.interrupted else 0


def goals_of(texts: Sequence[str]) -> tuple[Goal, ...]:
    """The goals in words. Raises OptionRefused for words that are none."""
    from mccompile.generate.errors import OptionRefused
    from mccompile.studio.explore.goals import parse_goal

    try:
        return tuple(parse_goal(text) for text in texts)
    except ValueError as error:
        raise OptionRefused("the goal", str(error), "write it as in these examples") from None


def job_of(arguments: argparse.Namespace, bases: tuple[str, ...], goals: tuple[Goal, ...], trials: int) -> Job:
    """The search that a command line asks for."""
    from mccompile.generate.load import find_folder
    from mccompile.generate.placement import Placement
    from mccompile.studio.explore.extras import Extras
    from mccompile.studio.explore.job import Job
    from mccompile.studio.explore.prompts import EMBEDDED

    chosen, settings = study_of(arguments, EMBEDDED, "a search without --prompts")
    return Job(
        bases=bases,
        fixed={n: v for n, v in arguments.parameters if not isinstance(v, str)},
        picks={n: w for n, w in arguments.parameters if isinstance(w, str)},
        model=arguments.model,
        folder=find_folder(arguments.model),
        place=Placement.of(arguments.device, arguments.dtype, False),
        settings=settings,
        seed=arguments.seed,
        prompts=chosen,
        out=arguments.out or Path("out/explore"),
        trials=trials,
        sampler=arguments.sampler,
        each=arguments.each,
        goals=goals,
        backend=arguments.backend,
        engine=arguments.engine,
        workers=arguments.workers,
        at_once=arguments.at_once,
        extras=Extras(arguments.lpips, arguments.vbench),
    )


def carry_out(job: Job, target: Path | None, store: bool) -> Found:
    """The search and what it writes, told on stdout as it goes.

    target: where a single goal's policy is written. store: whether the front is kept for `--policy auto`.
    """
    from mccompile.generate.places import prepare_place, put
    from mccompile.studio.explore.calibrated import store_front
    from mccompile.studio.explore.emit import said
    from mccompile.studio.explore.errors import GoalUnmet
    from mccompile.studio.explore.job import Session
    from mccompile.studio.explore.page import PAGE, render

    prepare_place(job.out)
    with display() as shown:
        session = Session(job, shown.task, shown.compiled)
        try:
            before = session.study.trials()
            if before:
                say(f"going on with {job.out}: {len(before)} trials are there")
            found = session.search(lambda trial: say(told(trial)))
            lines = summary(found, session.work(), job)
            for line in lines:
                say(line)
            written = [] if found.interrupted else session.emit_statics(found)
            for emitted in written:
                say(f"wrote {emitted.path}: on the held-out prompts {said(emitted.held_out)}")
            unmet = None
            for goal in () if found.interrupted else job.goals:
                try:
                    written.append(session.emit(goal, found, target))
                    say(f"wrote {written[-1].path}: on the held-out prompts {said(written[-1].held_out)}")
                except GoalUnmet as error:
                    unmet = unmet or error
            if store and not found.interrupted:
                say(store_front(session, found))
            files = [(str(e.path), str(e.trial.number), said(e.held_out)) for e in written]
            page = render(found, lines[1], session.about(), files, [f"static_{budget}" for budget in job.statics])
            put(job.out / PAGE, lambda draft: draft.write_text(page, encoding="utf-8"))
            say(f"wrote {job.out / PAGE}")
        finally:
            session.close()
    if unmet is not None:
        raise unmet
    return found


def told(trial: Trial | Failed) -> str:
    """A trial in a line."""
    from mccompile.studio.explore.emit import said
    from mccompile.studio.explore.page import settings_of
    from mccompile.studio.explore.study import Failed

    where = f"trial {trial.number}: {trial.point.policy} {settings_of(trial.point)}"
    if isinstance(trial, Failed):
        why = trial.why.splitlines()[0]
        return f"{where}: {'skipped' if trial.skipped else 'failed'}, {why}"
    twin = "" if trial.twin is None else f" (the schedule of trial {trial.twin}, not run again)"
    return f"{where}: {said(trial.outcome)}{twin}"


def summary(found: Found, work: Work, job: Job) -> list[str]:
    """The front as a table, then what was done for it."""
    from mccompile.studio.explore.goals import front
    from mccompile.studio.explore.page import HEADS, TEXTS, cells_of

    best = front(found.trials)
    failed, skipped = (sum(f.skipped is skip for f in found.failures) for skip in (False, True))
    rows = [HEADS, *(cells_of(trial) for trial in best)]
    ran = sum(t.twin is None for t in found.trials)
    return [
        "",
        f"Pareto front: {len(best)} of {len(found.trials)} trials ({ran} run, {len(found.trials) - ran} known from "
        f"a twin, {skipped} skipped, {failed} failed), prompts: {len(job.prompts.seen)}",
        *aligned(rows, frozenset(range(len(HEADS))) - TEXTS),
        "",
        f"captures: {work.captures}; policies compiled before the first trial: {work.compiled}, in the trials: 0; "
        f"vanilla videos generated: {work.vanilla}, others: {work.runs}",
        *(["interrupted: the same command goes on from here"] if found.interrupted else []),
    ]
