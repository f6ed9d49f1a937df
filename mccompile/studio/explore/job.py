"""A search from its settings to policy files: opens the study and the rig, searches, emits what goals ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mccompile.backend.inductor import Progress
from mccompile.generate.errors import OptionRefused
from mccompile.generate.load import EMBEDDED, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.places import prepare_place, put
from mccompile.generate.run import Settings
from mccompile.ir import PolicyIR
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.text import show
from mccompile.resources import own_version
from mccompile.studio.explore.emit import Evidence, policy_text, said
from mccompile.studio.explore.errors import GoalUnmet
from mccompile.studio.explore.goals import Goal, front, meeting
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.prompts import Prompts
from mccompile.studio.explore.rig import Announce, Rig
from mccompile.studio.explore.search import Found, Tell, search
from mccompile.studio.explore.space import ranges_of
from mccompile.studio.explore.study import Sampler, Study

_TRIED = 4  # trials that are measured on the held-out prompts before a goal is given up
_SLACK = 0.5  # dB by which the held-out prompts may fall below a goal


@dataclass(frozen=True, slots=True)
class Job:
    """A search. bases: policies by name or path. fixed: parameters that are not searched, by name.

    each: values of each parameter in a grid. trials: how many the study is to have in all.
    """

    bases: tuple[str, ...]
    fixed: Mapping[str, float]
    model: str
    folder: Path
    place: Placement
    settings: Settings
    seed: int
    prompts: Prompts
    out: Path
    trials: int
    sampler: Sampler
    each: int
    goals: tuple[Goal, ...]
    backend: str

    def about(self, policies: Mapping[str, PolicyIR]) -> dict[str, object]:
        """What all trials of the study share."""
        texts = {name: hashlib.sha256(show(p).encode()).hexdigest()[:12] for name, p in policies.items()}
        return {
            "model": self.model,
            "policy": texts,
            "fixed parameters": dict(self.fixed),
            "prompts": list(self.prompts.seen),
            "seed": self.seed,
            "video": self.settings.given(),
            "place": asdict(self.place),
            "versions": {"mccompile": own_version(), "torch": torch.__version__},
        }


@dataclass(frozen=True, slots=True)
class Emitted:
    """A written policy: its file and what was measured of it on the held-out prompts."""

    goal: Goal
    path: Path
    trial: Trial
    held_out: Outcome


class Session:
    """An open search."""

    def __init__(self, job: Job, announce: Announce, progress: Progress | None) -> None:
        self.job = job
        self._bases = {load_policy(base).name: base for base in job.bases}
        self._policies = {name: load_policy(base) for name, base in self._bases.items()}
        if len(self._policies) < len(job.bases):
            raise OptionRefused("--policies", "two of the policies have one name", "give each a name of its own")
        fixed = {n: _own(p, job.fixed) for n, p in self._policies.items()}
        for name, policy in self._policies.items():
            bind(policy, fixed[name])
        _all_known(job.fixed, self._policies)
        spaces = {n: ranges_of(p, job.fixed, job.settings.num_inference_steps) for n, p in self._policies.items()}
        self.study = Study(job.out, spaces, job.about(self._policies), job.sampler, job.seed, job.each)
        pipe = load_pipeline(job.folder, job.place)
        self.rig = Rig(
            pipe,
            job.settings,
            job.seed,
            self._policies,
            fixed,
            job.out / "vanilla",
            job.backend,
            announce,
            progress,
            job.model == EMBEDDED,
        )

    def search(self, told: Tell) -> Found:
        """Searches until the study has its trials, or Ctrl-C."""
        job = self.job
        return search(self.study, self.rig, job.prompts.seen, job.trials, job.sampler, job.goals, told)

    def emit(self, goal: Goal, found: Found, target: Path | None = None) -> Emitted:
        """The policy that meets the goal on the held-out prompts too, written to a file. Raises GoalUnmet (MC0743)."""
        tried = []
        for trial in meeting(goal, found.trials)[:_TRIED]:
            held = self.rig.run(trial.point, self.job.prompts.held_out)
            if _holds(goal, held):
                path = target or self.job.out / f"{self._policies[trial.point.policy].name}_{goal.slug}.policy"
                _write(path, self._text(goal, trial, held, found, path))
                return Emitted(goal, path, trial, held)
            tried.append(f"trial {trial.number} has {said(held)} on the held-out prompts")
        raise GoalUnmet(goal.text, "; ".join(tried) or _nearest(goal, found.trials))

    def _text(self, goal: Goal, trial: Trial, held: Outcome, found: Found, path: Path) -> str:
        job, name = self.job, trial.point.policy
        video = ", ".join(f"{k} {v}" for k, v in job.settings.given().items() if k != "prompt")
        about = (
            f"Model {job.model} on {job.place.device} in {job.place.dtype}; {video}; seed {job.seed}.",
            f"mccompile {own_version()}, torch {torch.__version__}.",
        )
        evidence = Evidence(
            goal, trial, len(found.trials) + len(found.failures), job.prompts.seen, job.prompts.held_out, held, about
        )
        policy = self._policies[name]
        return policy_text(self._bases[name], policy, _own(policy, job.fixed), evidence, path)


def _own(policy: PolicyIR, fixed: Mapping[str, float]) -> dict[str, float]:
    """Those of the fixed values that the policy has a parameter for."""
    names = {p.name for p in policy.params}
    return {k: v for k, v in fixed.items() if k in names}


def _all_known(fixed: Mapping[str, float], policies: Mapping[str, PolicyIR]) -> None:
    """A fixed value that no policy has a parameter for is refused in the words of the first policy (MC0301)."""
    known = {p.name for policy in policies.values() for p in policy.params}
    unknown = {k: v for k, v in fixed.items() if k not in known}
    if unknown:
        bind(next(iter(policies.values())), unknown)


def _holds(goal: Goal, held: Outcome) -> bool:
    """Whether the goal is met on prompts that the search did not see, up to a little."""
    slack = {"dB": _SLACK, "x": 0.1 * goal.least, "judge": 0.0}[goal.measure]
    return Goal(goal.text, goal.measure, goal.least - slack).met(held)


def _nearest(goal: Goal, trials: Sequence[Trial]) -> str:
    best = front(trials)
    if not best:
        return "no trial has finished"
    nearest = best[0] if goal.measure == "x" else best[-1]
    return f"the nearest, trial {nearest.number}, has {said(nearest.outcome)}"


def _write(path: Path, text: str) -> None:
    prepare_place(path)
    put(path, lambda draft: draft.write_text(text, encoding="utf-8"))
