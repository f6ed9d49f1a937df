"""The search: asks the study for points, skips those that need no run, runs the others, records everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mccompile.policy.cells import Plan
from mccompile.studio.explore.engine import FAILURES, Broken, TrialEngine
from mccompile.studio.explore.goals import Goal
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.study import Asked, Failed, Sampler, Study

Tell = Callable[[Trial | Failed], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has: finished trials, those that failed or were skipped, and whether it was interrupted."""

    trials: Sequence[Trial]
    failures: Sequence[Failed]
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Aim:
    """What a search runs on and for. prompts: of every trial. trials: of the study in all, failed and skipped ones too.

    goals: where all of them demand a speed, points that cannot have it are skipped. at_once: points that are asked for
    before any of them is known; the points of a search depend on it, and not on where it runs.
    """

    prompts: Sequence[str]
    trials: int
    sampler: Sampler
    goals: Sequence[Goal]
    at_once: int = 1


def search(study: Study, engine: TrialEngine, aim: Aim, told: Tell) -> Found:
    """Goes on until the study has its trials, or Ctrl-C. told: called after each trial."""
    interrupted = False
    while not interrupted and not study.exhausted(aim.sampler):
        left = aim.trials - len(study.trials()) - len(study.failures())
        if left <= 0:
            break
        around = _Round(study, engine, aim, told)
        try:
            for _ in range(min(aim.at_once, left)):
                if not study.exhausted(aim.sampler):
                    around.begin(study.ask())
            around.run()
        except KeyboardInterrupt:
            around.cut_off()
            interrupted = True
    return Found(study.trials(), study.failures(), interrupted)


class _Round:
    """Points that are asked for at once. What is known before they run settles some of them; the others run."""

    def __init__(self, study: Study, engine: TrialEngine, aim: Aim, told: Tell) -> None:
        self._study, self._engine, self._aim, self._told = study, engine, aim, told
        self._runs: list[Asked] = []
        self._twins: list[tuple[Asked, Asked]] = []  # with the point of this round whose schedule it has too
        self._open: dict[int, Asked] = {}

    def begin(self, asked: Asked) -> None:
        """Settles a point, or puts it among those that run."""
        self._open[asked.number] = asked
        try:
            own = _schedule(self._engine.plans(asked.point))
            twin = self._twin(asked, own)
            first = self._twin_here(asked, own)
            why = _hopeless(self._engine, asked, self._aim)
        except FAILURES as error:
            self._fail(asked, str(error).strip() or type(error).__name__)
            return
        if twin is not None:
            self._done(asked, twin.outcome, twin.number)
        elif first is not None:
            self._twins.append((asked, first))
        elif why:
            self._study.skip(asked, why)
            self._settled(asked, Failed(asked.number, asked.point, why, True))
        else:
            self._runs.append(asked)

    def run(self) -> None:
        """Runs what is left, and records each as it ends."""
        ended: dict[int, Outcome | Broken] = {}
        for place, found in self._engine.run_all([asked.point for asked in self._runs], self._aim.prompts):
            asked = self._runs[place]
            ended[asked.number] = found
            self._record(asked, found, None)
        for asked, first in self._twins:
            self._record(asked, ended[first.number], first.number)

    def cut_off(self) -> None:
        """What was not recorded will be asked for again."""
        for asked in self._open.values():
            self._study.interrupted(asked)

    def _record(self, asked: Asked, found: Outcome | Broken, twin: int | None) -> None:
        if isinstance(found, Broken):
            self._fail(asked, found.why)
        else:
            self._done(asked, found, twin)

    def _done(self, asked: Asked, outcome: Outcome, twin: int | None) -> None:
        self._study.tell(asked, outcome, twin)
        self._settled(asked, Trial(asked.number, asked.point, outcome, twin))

    def _fail(self, asked: Asked, why: str) -> None:
        self._study.fail(asked, why)
        self._settled(asked, Failed(asked.number, asked.point, why, False))

    def _settled(self, asked: Asked, trial: Trial | Failed) -> None:
        del self._open[asked.number]
        self._told(trial)

    def _twin(self, asked: Asked, own: tuple[tuple[str, ...], ...] | None) -> Trial | None:
        """An earlier trial whose schedule is this one's: where nothing is left to the data, so are its results."""
        if own is None:
            return None
        for trial in self._study.trials():
            same = trial.twin is None and trial.point.variant == asked.point.variant
            if same and _schedule(self._engine.plans(trial.point)) == own:
                return trial
        return None

    def _twin_here(self, asked: Asked, own: tuple[tuple[str, ...], ...] | None) -> Asked | None:
        """The same among the points of this round."""
        if own is None:
            return None
        for other in self._runs:
            same = other.point.variant == asked.point.variant
            if same and _schedule(self._engine.plans(other.point)) == own:
                return other
        return None


def _schedule(plans: Mapping[str, Plan] | None) -> tuple[tuple[str, ...], ...] | None:
    """What each step does in each group of regions; None where data decides any of it."""
    if plans is None:
        return None
    steps = tuple(tuple(cell.action for cell in plan.cells) for plan in plans.values())
    return None if any("dynamic" in own for own in steps) else steps


def _hopeless(engine: TrialEngine, asked: Asked, aim: Aim) -> str:
    """Why the point cannot have the speed that every goal demands; "" where it may."""
    if not aim.goals or any(goal.measure != "x" for goal in aim.goals):
        return ""
    wanted = min(goal.least for goal in aim.goals)
    least = engine.least_flops(asked.point, aim.prompts[0])
    if least is None or least * wanted <= 1.0:
        return ""
    return f"its plan alone computes {least:.1%} of vanilla's FLOPs, and {wanted:g}x allows {1 / wanted:.1%}"
