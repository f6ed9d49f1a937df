"""A study: trials in SQLite through Optuna. What was finished stays; what a kill cut off is asked for again."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import optuna
from optuna.trial import TrialState

from mccompile.studio.explore.errors import StudyDiffers, StudyUnreadable
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.space import Point, Space, asked, default, grid, suggest

Sampler = Literal["tpe", "nsga2", "random", "grid"]
DATABASE = "study.db"
_NAME = "explore"
_DIRECTIONS: Final = ("minimize", "maximize")  # FLOPs, PSNR


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial that ended in an error, or was skipped; why, in a sentence."""

    number: int
    point: Point
    why: str
    skipped: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that has begun, and Optuna's own object of it."""

    number: int
    point: Point
    trial: optuna.Trial


class Study:
    """The trials of one search. about: settings that all of them share; a study with others is refused (MC0742).

    statics: policies without parameters that are measured beside the searched ones, each once.
    """

    def __init__(
        self,
        folder: Path,
        spaces: Mapping[str, Space],
        about: Mapping[str, object],
        sampler: Sampler,
        seed: int,
        each: int,
        statics: Sequence[str] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        _check_database(folder / DATABASE)
        self._spaces = spaces
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=f"sqlite:///{folder / DATABASE}", study_name=_NAME, directions=_DIRECTIONS, load_if_exists=True
            )
        _check_same(folder, self._study, about)
        self._study.sampler = _sampler(sampler, seed + len(self._study.trials))
        self._again()
        known = [t.user_attrs.get("static") for t in self._study.trials]
        if None not in known:
            points = grid(spaces, each) if sampler == "grid" else (default(n, s) for n, s in spaces.items())
            for point in points:
                self._study.enqueue_trial(asked(point))
        for name in statics:
            if name not in known:
                self._study.enqueue_trial({}, user_attrs={"static": name})

    def ask(self) -> Asked:
        """The next point. It is recorded before it runs."""
        trial = self._study.ask()
        static = trial.user_attrs.get("static")
        point = suggest(trial, self._spaces) if static is None else Point(static, {})
        trial.set_user_attr("values", dict(point.values))
        trial.set_user_attr("picks", dict(point.picks))
        return Asked(trial.number, point, trial)

    def tell(self, asked: Asked, outcome: Outcome, twin: int | None = None) -> None:
        """Records a finished trial."""
        asked.trial.set_user_attr("outcome", asdict(outcome))
        asked.trial.set_user_attr("twin", twin)
        self._study.tell(asked.trial, [outcome.flops, outcome.psnr])

    def skip(self, asked: Asked, why: str) -> None:
        """Records a point that was not run, because it cannot be what is sought."""
        asked.trial.set_user_attr("why", why)
        self._study.tell(asked.trial, state=TrialState.PRUNED)

    def fail(self, asked: Asked, error: str) -> None:
        """Records a trial that ended in an error."""
        asked.trial.set_user_attr("why", error)
        self._study.tell(asked.trial, state=TrialState.FAIL)

    def interrupted(self, asked: Asked) -> None:
        """A trial that was cut off: it does not count and will be asked for again."""
        self._study.tell(asked.trial, state=TrialState.FAIL)
        self._once_more(asked.number, asked.trial.params, asked.trial.user_attrs)

    def trials(self) -> list[Trial]:
        """The finished trials, in their order."""
        found = []
        for trial in self._study.get_trials(states=(TrialState.COMPLETE,)):
            kept = trial.user_attrs
            found.append(Trial(trial.number, _point(trial), Outcome(**kept["outcome"]), kept["twin"]))
        return found

    def failures(self) -> list[Failed]:
        """The trials that failed or were skipped, in their order; not those that were cut off."""
        states = (TrialState.FAIL, TrialState.PRUNED)
        return [
            Failed(
                t.number,
                _point(t),
                t.user_attrs["why"],
                t.state is TrialState.PRUNED,
            )
            for t in self._study.get_trials(states=states)
            if "why" in t.user_attrs
        ]

    def exhausted(self, sampler: Sampler) -> bool:
        """Whether a grid has no point left."""
        return sampler == "grid" and not self._study.get_trials(states=(TrialState.WAITING,))

    def _again(self) -> None:
        """Trials that were running when the process was killed are asked for again."""
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._once_more(trial.number, trial.params, trial.user_attrs)

    def _once_more(self, number: int, params: Mapping[str, object], attributes: Mapping[str, object]) -> None:
        """Asks for the point of a trial again, where it had one."""
        static = {"static": attributes["static"]} if "static" in attributes else {}
        if params or static:
            self._study.enqueue_trial(dict(params), user_attrs={"again": number, **static})


def _point(trial: optuna.trial.FrozenTrial) -> Point:
    """The point of a recorded trial."""
    kept = trial.user_attrs
    return Point(kept.get("static") or trial.params["policy"], kept["values"], kept.get("picks", {}))


def _check_database(path: Path) -> None:
    """Raises StudyUnreadable (MC0744) for a file that is no whole database."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        raise StudyUnreadable(str(path), str(error)) from error
    if found != ("ok",):
        raise StudyUnreadable(str(path), f"{found[0]:.200}".splitlines()[0])


def _sampler(name: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)
        case "random" | "grid":
            return optuna.samplers.RandomSampler(seed=seed)


def _check_same(folder: Path, study: optuna.Study, about: Mapping[str, object]) -> None:
    """Raises StudyDiffers where the study was begun with other settings; remembers those of a new one."""
    now = json.loads(json.dumps(dict(about)))
    then = study.user_attrs.get("about")
    if then is None:
        study.set_user_attr("about", now)
        return
    for name in (*then, *now):
        if then.get(name) != now.get(name):
            raise StudyDiffers(str(folder), name, then.get(name), now.get(name))
