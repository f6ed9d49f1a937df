"""The search: asks the study for points, skips those that need no run, runs the others, records everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mccompile.diagnostics.failure import Failure
from mccompile.policy.cells import Plan
from mccompile.studio.explore.goals import Goal
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.rig import Rig
from mccompile.studio.explore.study import Asked, Failed, Sampler, Study

# What a trial may end in without ending the search: our refusals, and what torch and diffusers raise for bad numbers,
# sizes and memory.
FAILURES = (Failure, RuntimeError, ValueError, ArithmeticError, OSError, TypeError)
Tell = Callable[[Trial | Failed], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has: finished trials, those that failed or were skipped, and whether it was interrupted."""

    trials: Sequence[Trial]
    failures: Sequence[Failed]
    interrupted: bool


def search(
    study: Study, rig: Rig, prompts: Sequence[str], trials: int, sampler: Sampler, goals: Sequence[Goal], told: Tell
) -> Found:
    """Goes on until the study has `trials` trials, failed and skipped ones included, or Ctrl-C.

    told: called after each trial. goals: where all of them demand a speed, points that cannot have it are skipped.
    """
    interrupted = False
    while len(study.trials()) + len(study.failures()) < trials and not study.exhausted(sampler):
        asked = study.ask()
        try:
            told(_one(study, rig, prompts, asked, goals))
        except KeyboardInterrupt:
            study.interrupted(asked)
            interrupted = True
            break
    return Found(study.trials(), study.failures(), interrupted)


def _one(study: Study, rig: Rig, prompts: Sequence[str], asked: Asked, goals: Sequence[Goal]) -> Trial | Failed:
    try:
        twin = _twin(study, rig, asked)
        if twin is not None:
            study.tell(asked, twin.outcome, twin.number)
            return Trial(asked.number, asked.point, twin.outcome, twin.number)
        why = _hopeless(rig, prompts[0], asked, goals)
        if why:
            study.skip(asked, why)
            return Failed(asked.number, asked.point, why, True)
        outcome: Outcome = rig.run(asked.point, prompts)
    except FAILURES as error:
        why = str(error).strip() or type(error).__name__
        study.fail(asked, why)
        return Failed(asked.number, asked.point, why, False)
    study.tell(asked, outcome)
    return Trial(asked.number, asked.point, outcome, None)


def _twin(study: Study, rig: Rig, asked: Asked) -> Trial | None:
    """An earlier trial whose schedule is this one's: where nothing is left to the data, so are its results."""
    own = _schedule(rig.plans(asked.point))
    if own is None:
        return None
    for trial in study.trials():
        if trial.twin is None and trial.point.policy == asked.point.policy and _schedule(rig.plans(trial.point)) == own:
            return trial
    return None


def _schedule(plans: Mapping[str, Plan] | None) -> tuple[tuple[str, ...], ...] | None:
    """What each step does in each group of regions; None where data decides any of it."""
    if plans is None:
        return None
    steps = tuple(tuple(cell.action for cell in plan.cells) for plan in plans.values())
    return None if any("dynamic" in own for own in steps) else steps


def _hopeless(rig: Rig, prompt: str, asked: Asked, goals: Sequence[Goal]) -> str:
    """Why the point cannot have the speed that every goal demands; "" where it may."""
    if not goals or any(goal.measure != "x" for goal in goals):
        return ""
    wanted = min(goal.least for goal in goals)
    least = rig.least_flops(asked.point, prompt)
    if least is None or least * wanted <= 1.0:
        return ""
    return f"its plan alone computes {least:.1%} of vanilla's FLOPs, and {wanted:g}x allows {1 / wanted:.1%}"
