"""A search from its settings to policy files: opens the study and the engine, searches, emits what goals ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from mccompile.backend.inductor import Progress
from mccompile.generate.cluster import Workers, ray_cluster
from mccompile.generate.errors import OptionRefused
from mccompile.generate.placement import Placement
from mccompile.generate.places import prepare_place, put
from mccompile.generate.run import Settings
from mccompile.ir import PolicyIR
from mccompile.language.load import load_choices, load_policy
from mccompile.policy.bind import bind
from mccompile.policy.choosing import load_chosen
from mccompile.policy.text import show
from mccompile.resources import own_version
from mccompile.studio.explore.emit import Evidence, policy_text, said, with_evidence
from mccompile.studio.explore.engine import Broken, Local, Rigging, Spreading
from mccompile.studio.explore.errors import GoalUnmet
from mccompile.studio.explore.extras import NO_EXTRAS, Extras
from mccompile.studio.explore.goals import Goal, front, meeting
from mccompile.studio.explore.measuring import read_table, table_json
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.prompts import Prompts
from mccompile.studio.explore.rig import Announce, Work
from mccompile.studio.explore.schedule import CostTable, best_schedule, mask_policy
from mccompile.studio.explore.search import Aim, Found, Tell, search
from mccompile.studio.explore.space import Point, Space, ranges_of, variant
from mccompile.studio.explore.study import Sampler, Study

_TRIED = 4  # trials that are measured on the held-out prompts before a goal is given up
_SLACK = 0.5  # dB by which the held-out prompts may fall below a goal
COST_TABLE = "costs.json"
EngineName = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Job:
    """A search. bases: policies by name or path. fixed: parameters that are not searched, by name.

    each: values of each parameter in a grid. trials: how many the study is to have in all. picks: alternatives of
    choices that are not searched. statics: budgets of static schedules, in computed steps. engine, workers: where
    trials run, and on how many workers (None: as many as there is room for). at_once: see search.Aim; None: one, or as
    many as there are workers. extras: what is measured beside PSNR and SSIM.
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
    picks: Mapping[str, str] = field(default_factory=dict)
    statics: tuple[int, ...] = ()
    engine: EngineName = "local"
    workers: int | None = None
    at_once: int | None = None
    extras: Extras = NO_EXTRAS

    def about(self, policies: Mapping[str, Sequence[PolicyIR]]) -> dict[str, object]:
        """What all trials of the study share."""
        texts = {
            name: hashlib.sha256("".join(map(show, variants)).encode()).hexdigest()[:12]
            for name, variants in policies.items()
        }
        return {
            "model": self.model,
            "policy": texts,
            "fixed parameters": {**self.fixed, **self.picks},
            "prompts": list(self.prompts.seen),
            "seed": self.seed,
            "video": self.settings.given(),
            "place": asdict(self.place),
            "versions": {"mccompile": own_version(), "torch": torch.__version__},
            **self.extras.about(),
        }

    def rigging(self) -> Rigging:
        """How its rigs are made."""
        kept = self.out / "vanilla"
        return Rigging(self.model, self.folder, self.place, self.settings, self.seed, kept, self.backend, self.extras)


@dataclass(frozen=True, slots=True)
class Emitted:
    """A written policy: its file and what was measured of it on the held-out prompts."""

    path: Path
    trial: Trial
    held_out: Outcome


@dataclass(frozen=True, slots=True)
class _Searched:
    """A policy of the search: how it is named, its space, and the policies of its variants."""

    base: str
    space: Space
    variants: Mapping[str, PolicyIR]


class Session:
    """An open search."""

    def __init__(self, job: Job, announce: Announce, progress: Progress | None) -> None:
        self.job = job
        self._searched = {load_policy(base).name: _searched(base, job) for base in job.bases}
        if len(self._searched) < len(job.bases):
            raise OptionRefused("--policies", "two of the policies have one name", "give each a name of its own")
        _all_known(job)
        _check_statics(job)
        self._texts: dict[str, str] = {}  # of static policies, by name
        spaces = {name: one.space for name, one in self._searched.items()}
        names = [f"static_{budget}" for budget in job.statics]
        self.study = Study(job.out, spaces, self.about(), job.sampler, job.seed, job.each, names)
        self.engine = _engine(job, announce, progress)
        self._policies = {v: p for one in self._searched.values() for v, p in one.variants.items()}
        self._policies |= self._static_policies()
        self.engine.compile(self._policies, {v: _own(p, job.fixed) for v, p in self._policies.items()})

    def search(self, told: Tell) -> Found:
        """Searches until the study has its trials, or Ctrl-C."""
        job = self.job
        self.engine.prepare(job.prompts.seen)
        at_once = job.at_once or (1 if isinstance(self.engine, Local) else len(self.engine))
        aim = Aim(job.prompts.seen, job.trials + len(job.statics), job.sampler, job.goals, at_once)
        return search(self.study, self.engine, aim, told)

    def emit(self, goal: Goal, found: Found, target: Path | None = None) -> Emitted:
        """The policy that meets the goal on the held-out prompts too, written to a file. Raises GoalUnmet (MC0743)."""
        tried = []
        for trial in meeting(goal, found.trials)[:_TRIED]:
            held = self.held_out(trial)
            if _holds(goal, held):
                return self._write(goal.text, trial, held, found, target or self._place(trial, goal.slug))
            tried.append(f"trial {trial.number} has {said(held)} on the held-out prompts")
        raise GoalUnmet(goal.text, "; ".join(tried) or _nearest(goal, found.trials))

    def emit_statics(self, found: Found) -> list[Emitted]:
        """The static policies as files, each measured on the held-out prompts."""
        emitted = []
        for trial in found.trials:
            if trial.point.policy in self._texts:
                goal = f"the static schedule that loses least for {trial.point.policy.removeprefix('static_')} steps"
                path = self.job.out / f"{trial.point.policy}.policy"
                emitted.append(self._write(goal, trial, self.held_out(trial), found, path))
        return emitted

    def held_out(self, trial: Trial) -> Outcome:
        """The trial's point on the prompts that the search did not see. Raises what a run raises."""
        (_, found), *_ = self.engine.run_all([trial.point], self.job.prompts.held_out)
        if isinstance(found, Broken):
            raise GoalUnmet(f"trial {trial.number}", f"on the held-out prompts it failed: {found.why}")
        return found

    def policy_of(self, point: Point) -> PolicyIR:
        """The policy of a point, its choices settled; its parameters still have their own defaults."""
        return self._policies[point.variant]

    def about(self) -> dict[str, object]:
        """The settings that all trials share."""
        return self.job.about({name: tuple(one.variants.values()) for name, one in self._searched.items()})

    def work(self) -> Work:
        """What was done for the search."""
        return self.engine.work()

    def close(self) -> None:
        """Ends the workers, if there are any."""
        self.engine.close()

    def _place(self, trial: Trial, slug: str) -> Path:
        return self.job.out / f"{self.policy_of(trial.point).name}_{slug}.policy"

    def _write(self, goal: str, trial: Trial, held: Outcome, found: Found, path: Path) -> Emitted:
        text = self._text(goal, trial, held, found, path)
        prepare_place(path)
        put(path, lambda draft: draft.write_text(text, encoding="utf-8"))
        return Emitted(path, trial, held)

    def _text(self, goal: str, trial: Trial, held: Outcome, found: Found, path: Path) -> str:
        job, name = self.job, trial.point.policy
        video = ", ".join(f"{k} {v}" for k, v in job.settings.given().items() if k != "prompt")
        about = (
            f"Model {job.model} on {job.place.device} in {job.place.dtype}; {video}; seed {job.seed}.",
            f"mccompile {own_version()}, torch {torch.__version__}.",
        )
        evidence = Evidence(
            goal, trial, len(found.trials) + len(found.failures), job.prompts.seen, job.prompts.held_out, held, about
        )
        if name in self._texts:
            return with_evidence(self._texts[name], evidence, path)
        policy = self.policy_of(trial.point)
        return policy_text(self._searched[name].base, policy, _own(policy, job.fixed), evidence, path)

    def _static_policies(self) -> dict[str, PolicyIR]:
        """The best static schedule of each budget."""
        if not self.job.statics:
            return {}
        table = self._costs()
        chunks = next(iter(next(iter(self._searched.values())).variants.values())).chunks
        for budget in self.job.statics:
            name = f"static_{budget}"
            self._texts[name] = mask_policy(name, best_schedule(table, budget), table.steps, chunks)
        return {name: load_policy(text) for name, text in self._texts.items()}

    def _costs(self) -> CostTable:
        """The cost table of the study: measured once, and kept in its folder."""
        job, path = self.job, self.job.out / COST_TABLE
        about = json.loads(json.dumps({**job.about({}), "policy": "all steps computed"}))
        known = None
        if path.is_file():
            try:
                known = read_table(json.loads(path.read_text(encoding="utf-8")), about)
            except (OSError, ValueError, RecursionError):
                known = None  # it is measured again
        if known is None:
            steps = job.settings.num_inference_steps
            assert steps is not None
            chunks = next(iter(next(iter(self._searched.values())).variants.values())).chunks
            known = self.engine.costs(job.prompts.seen, steps, chunks)
            data = json.dumps(table_json(known, about))
            put(path, lambda draft: draft.write_text(data, encoding="utf-8"))
        return known


def _engine(job: Job, announce: Announce, progress: Progress | None) -> Local | Spreading:
    match job.engine:
        case "local":
            return Local(job.rigging().build(announce, progress))
        case "ray":
            cluster = ray_cluster(job.place.device)
            return Spreading(Workers(cluster, job.workers or cluster.size(), job.rigging().build_alone))


def _searched(base: str, job: Job) -> _Searched:
    """The variants of a policy and what is searched of each. Raises PolicyError for picks and values that are wrong."""
    name, known = load_policy(base).name, load_choices(base)
    settled = {n: w for n, w in job.picks.items() if n in known}
    load_chosen(base, settled)
    choices = {n: (settled[n],) if n in settled else words for n, words in known.items()}
    ways = list(Space(choices, {}).ways())
    variants = {variant(name, picks): load_policy(base, picks) for picks in ways}
    for policy in variants.values():
        bind(policy, _own(policy, job.fixed))
    steps = job.settings.num_inference_steps
    return _Searched(base, Space(choices, {v: ranges_of(p, job.fixed, steps) for v, p in variants.items()}), variants)


def _own(policy: PolicyIR, fixed: Mapping[str, float]) -> dict[str, float]:
    """Those of the fixed values that the policy has a parameter for."""
    names = {p.name for p in policy.params}
    return {k: v for k, v in fixed.items() if k in names}


def _all_known(job: Job) -> None:
    """A fixed value or pick that no policy has is refused in the words of the first policy (MC0301, MC0310)."""
    policies = [p for base in job.bases for p in _searched(base, job).variants.values()]
    known = {p.name for policy in policies for p in policy.params}
    unknown = {k: v for k, v in job.fixed.items() if k not in known}
    if unknown:
        bind(policies[0], unknown)
    choices = {name for base in job.bases for name in load_choices(base)}
    load_chosen(job.bases[0], {n: w for n, w in job.picks.items() if n not in choices})


def _check_statics(job: Job) -> None:
    """Raises OptionRefused for a budget that no run of this length has."""
    steps = job.settings.num_inference_steps
    for budget in job.statics:
        if steps is None:
            raise OptionRefused("--static", "it needs to know the number of steps", "give --steps too")
        if budget >= steps:
            why = f"a run of {steps} steps that computes {budget} of them reuses nothing"
            raise OptionRefused(f"--static {budget}", why, f"give a number from 1 to {steps - 1}")


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
