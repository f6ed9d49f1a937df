"""One pipeline for many trials: captured once, compiled once per policy, vanilla generated once per prompt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mccompile.backend.inductor import Progress
from mccompile.generate.compare import Announce, Contender, can_judge, capture_for, compile_contenders, run_with
from mccompile.generate.flops import Prices, count, prices_of
from mccompile.generate.run import Settings, Video, call_arguments
from mccompile.ir import Chunks, PolicyIR
from mccompile.language.load import load_policy
from mccompile.metrics.pixels import psnr, psnr_per_frame, ssim
from mccompile.models.embedded.judge import judge
from mccompile.policy.bind import bind
from mccompile.policy.cells import Plan
from mccompile.policy.groups import bounds_of, own_branches
from mccompile.policy.phases import Grid
from mccompile.runtime.compiled import CompiledModel, of_other_form
from mccompile.runtime.one_by_one import first_sample
from mccompile.runtime.planning import make_plans
from mccompile.runtime.shared import Value
from mccompile.runtime.trace import Event
from mccompile.studio.explore.extras import NO_EXTRAS, Extras
from mccompile.studio.explore.measuring import Residuals, all_kept, mean_table
from mccompile.studio.explore.outcome import Outcome, capped
from mccompile.studio.explore.schedule import CostTable
from mccompile.studio.explore.space import Point

_VANILLA = "vanilla (reference)"  # no policy has such a name


@dataclass(slots=True)
class Work:
    """How often the expensive things were done: captures, compiled policies, generations of vanilla and of policies."""

    captures: int = 0
    compiled: int = 0
    vanilla: int = 0
    runs: int = 0

    def counts(self) -> tuple[int, int, int, int]:
        """All four, in their order."""
        return self.captures, self.compiled, self.vanilla, self.runs


@dataclass(frozen=True, slots=True)
class Reference:
    """Vanilla's video of a prompt, the seconds that it took and its FLOPs."""

    video: Video
    seconds: float
    flops: float


@dataclass(frozen=True, slots=True)
class RunOutline:
    """What predicts a policy before it runs: its step grid, a call's inputs, and the events of one run of it."""

    grid: Grid
    inputs: Mapping[str, Value]
    events: tuple[Event, ...]


class Rig:
    """Runs points of a search. `work` counts what was done; nothing is captured or compiled after `compile`."""

    def __init__(
        self,
        pipe: object,
        settings: Settings,
        seed: int,
        kept: Path,
        backend: str,
        announce: Announce,
        progress: Progress | None,
        judges: bool,
        extras: Extras = NO_EXTRAS,
    ) -> None:
        """judges: the embedded judge looks. Raises MetricUnavailable (MC0733)."""
        extras.check()
        self._extras = extras
        self._vanilla_dimensions: dict[tuple[str, ...], dict[str, float]] = {}
        self.work = Work()
        self._pipe, self._settings, self._seed = pipe, settings, seed
        self._kept, self._announce, self._judges = kept, announce, judges
        self._backend, self._progress = backend, progress
        done = announce("capture the model")
        self._captured = capture_for(pipe, call_arguments(pipe, settings))
        done(1, 1)
        self.work.captures += 1
        self._models: dict[str, CompiledModel] = {}
        self._prices: Prices | None = None
        self._schedules: dict[str, RunOutline] = {}
        self._references: dict[str, Reference] = {}

    def compile(self, policies: Mapping[str, PolicyIR], fixed: Mapping[str, Mapping[str, float]]) -> None:
        """Compiles vanilla and the policies, by variant, with the parameters that are not searched."""
        ways = [
            Contender(_VANILLA, load_policy("compute"), {}),
            *(Contender(n, p, fixed.get(n, {})) for n, p in policies.items()),
        ]
        self._models = compile_contenders(self._pipe, self._captured, ways, self._backend, self._progress)
        self.work.compiled += len(ways)

    def costs(self, prompts: Sequence[str], steps: int, chunks: Chunks) -> CostTable:
        """What each reuse would cost, measured on one run of every prompt that computes all of its `steps` steps."""
        way = Contender("costs", all_kept(steps, chunks), {})
        model = compile_contenders(self._pipe, self._captured, [way], self._backend, self._progress)[way.name]
        self.work.compiled += 1
        tables = []
        for prompt in prompts:
            residuals = Residuals()
            with residuals.watching(model):
                run_with(self._pipe, model, self._call(prompt), self._seed, self._announce("cost table"))
            self.work.runs += 1
            tables.append(residuals.table(steps))
        return mean_table(tables)

    def run(self, point: Point, prompts: Sequence[str]) -> Outcome:
        """The point on every prompt, against vanilla. Raises what the pipeline and the policy raise."""
        references = [self.reference(prompt) for prompt in prompts]
        model = self._models[point.variant]
        model.set_parameters(**point.values)
        videos, seconds, flops, tokens = [], 0.0, 0.0, []
        for prompt in prompts:
            with self._watched(point.variant, model):
                done = run_with(self._pipe, model, self._call(prompt), self._seed, self._announce(point.variant))
            self.work.runs += 1
            videos.append(done.video)
            seconds += done.seconds
            flops += self._flops(model)
            tokens.append((sum(e.computed for e in model.events), sum(e.tokens for e in model.events)))
        stock = [r.video for r in references]
        pairs = list(zip(videos, stock, strict=True))
        return Outcome(
            flops=flops / sum(r.flops for r in references),
            tokens=sum(c for c, _ in tokens) / sum(t for _, t in tokens),
            seconds=seconds,
            vanilla_seconds=sum(r.seconds for r in references),
            psnr=min(capped(psnr(v, r)) for v, r in pairs),
            frame=min(capped(min(psnr_per_frame(v, r))) for v, r in pairs),
            ssim=float(np.mean([ssim(v, r) for v, r in pairs])),
            judged=self._judged(videos, prompts),
            lpips=self._extras.distance(videos, stock),
            vbench=self._extras.dimensions(videos),
            vanilla_vbench=self._dimensions_of_vanilla(prompts, stock),
        )

    def _dimensions_of_vanilla(self, prompts: Sequence[str], videos: Sequence[Video]) -> dict[str, float]:
        """Of the same prompts, measured once."""
        known = self._vanilla_dimensions.get(tuple(prompts))
        if known is None:
            known = self._vanilla_dimensions[tuple(prompts)] = self._extras.dimensions(videos)
        return known

    def plans(self, point: Point) -> Mapping[str, Plan] | None:
        """What is known of each group of regions before the point runs; None before the first run of its policy.

        None too where guidance branches decide apart: a plan is of one of them.
        """
        schedule = self._schedules.get(point.variant)
        if schedule is None:
            return None
        runner = self._models[point.variant].runner
        bound = bind(runner.lowered.policy, {**runner.bound.values, **point.values})
        if own_branches(bound.ir):
            return None
        with torch.no_grad():
            return make_plans(runner.lowered, bounds_of(bound), schedule.grid, schedule.inputs, True)

    def least_flops(self, point: Point, prompt: str) -> float | None:
        """The least share of vanilla's FLOPs that the point can take; what it takes if its plan is static.

        A dynamic step may compute nothing, so it counts nothing. None before the first run of its policy.
        """
        plans = self.plans(point)
        if plans is None or self._prices is None:
            return None
        events = [_at_least(e, plans[e.region]) for e in self._schedules[point.variant].events]
        return count(self._models[point.variant], events, self._prices) / self.reference(prompt).flops

    def reference(self, prompt: str) -> Reference:
        """Vanilla's generation, made once and kept in a file."""
        if prompt in self._references:
            return self._references[prompt]
        path = self._kept / f"{self._key(prompt)}.npz"
        known = read_reference(path) if path.is_file() else None
        if known is None:
            model = self._models[_VANILLA]
            with self._watched(_VANILLA, model):
                done = run_with(self._pipe, model, self._call(prompt), self._seed, self._announce(_VANILLA))
            self.work.vanilla += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            known = Reference(done.video, done.seconds, float(self._flops(model)))
            self.hold(prompt, known)
        self._references[prompt] = known
        return known

    def hold(self, prompt: str, reference: Reference) -> None:
        """Takes vanilla's generation of a prompt from somewhere else, and keeps it in a file."""
        path = self._kept / f"{self._key(prompt)}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}.part")  # a file that is there is complete, whenever we are killed
        with whole.open("wb") as file:
            np.savez(file, video=reference.video, seconds=reference.seconds, flops=reference.flops)
        whole.rename(path)
        self._references[prompt] = reference

    def _call(self, prompt: str) -> dict[str, object]:
        return call_arguments(self._pipe, replace(self._settings, prompt=prompt))

    def _key(self, prompt: str) -> str:
        about = json.dumps([asdict(replace(self._settings, prompt=prompt)), self._seed], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:16]

    def _flops(self, model: CompiledModel) -> float:
        if self._prices is None:
            raise ValueError("prices are known after a run")
        return count(model, model.events, self._prices)

    def _judged(self, videos: Sequence[Video], prompts: Sequence[str]) -> float | None:
        if not self._judges or not all(can_judge(p) for p in prompts):
            return None
        seen = [judge(v, p) for v, p in zip(videos, prompts, strict=True)]
        return sum(s.colour_right and s.motion_right for s in seen) / len(seen)

    @contextlib.contextmanager
    def _watched(self, name: str, model: CompiledModel) -> Iterator[None]:
        """Remembers the prices and the schedule of the run inside."""
        seen: dict[str, object] = {}

        def after(module: CompiledModel, _: object, kwargs: dict[str, object], __: object) -> None:
            if of_other_form(module.events[-1]):
                return
            latest = next(reversed(module.runner.requests.values()))
            seen.update(call=kwargs, plan=next(iter(latest.plans.values())))

        hooks = [nn.Module.register_forward_hook(each, after, with_kwargs=True) for each in model.experts]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        call, plan = seen["call"], seen["plan"]
        assert isinstance(call, dict)
        assert isinstance(plan, Plan)
        if self._prices is None:
            self._prices = prices_of(model, call)
        if len(model.experts) > 1:  # each has a plan, of its own part of the steps
            return
        captured = model.runner.lowered.captured
        asked = {**call, "return_dict": False} if "return_dict" in call else call
        inputs = first_sample(captured, asked)
        self._schedules.setdefault(name, RunOutline(plan.grid, inputs, tuple(model.events)))


def _at_least(event: Event, plan: Plan) -> Event:
    """The event with the fewest tokens that the plan lets it compute; one that no phase decided stays."""
    if not event.phase or event.action == "skip":
        return event
    computes = plan.cells[event.step].action == "compute"
    return replace(event, action="full" if computes else "reuse", computed=event.tokens if computes else 0)


def read_reference(path: Path) -> Reference | None:
    """What was kept of a generation; None where the file is damaged, so that it is made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            video, seconds, flops = kept["video"], float(kept["seconds"]), float(kept["flops"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    whole = video.dtype == np.float32 and video.ndim == 4 and np.isfinite(video).all() and seconds > 0 and flops > 0
    return Reference(video, seconds, flops) if whole else None
