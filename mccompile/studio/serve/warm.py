"""A loaded model that runs policies one after the other: captured once, vanilla generated once per video."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mccompile import api
from mccompile.generate.compare import Contender, announce, capture_for, compile_roles, last_call, run_with
from mccompile.generate.flops import Prices, count_by_row, prices_of
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, Generation, OnStep, Settings, call_arguments
from mccompile.generate.video import write_mp4
from mccompile.language.load import load_policy
from mccompile.metrics.pixels import psnr, psnr_per_frame
from mccompile.models.embedded import DEFAULTS
from mccompile.pipelines.finding import driver_for
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.phases import Grid
from mccompile.policy.text import show
from mccompile.runtime.blocks import Backend, eager
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import share_computed
from mccompile.studio.report.page import write_page
from mccompile.studio.report.record import Record, Way, as_bytes
from mccompile.studio.report.recorded import record_of
from mccompile.studio.report.recorded import watch as watched
from mccompile.studio.report.stopwatch import Stopwatch
from mccompile.studio.serve.checked import bound_of
from mccompile.studio.serve.orders import (
    ALONE,
    REPORT,
    SIDE_BY_SIDE,
    Given,
    Loaded,
    Order,
    Preset,
    RunOutcome,
    RunProgress,
)

VANILLA = "vanilla"
DEFAULT_FPS = 24
_SHOWN = 256  # pixels: smaller videos are enlarged
_MODELS_KEPT, _VIDEOS_KEPT = 4, 8
_SMALLER: Mapping[str, Settings] = {
    "small: 15 frames, 25 steps": Settings(num_frames=15, num_inference_steps=25),
    "medium: 15 frames, 50 steps": Settings(num_frames=15),
    "whole: 31 frames, 50 steps": Settings(),
}  # of the embedded model
_COMMON = tuple(Contender(name, load_policy(name), {}) for name in ("compute", "exact"))  # run every form of a block
TellProgress = Callable[[RunProgress], None]


class StopAsked(Exception):
    """The run under way is to end."""


@dataclass(frozen=True, slots=True)
class Vanilla:
    """The whole model's generation. steps: seconds of each. flops: of each step. prices: of the parts of its calls."""

    done: Generation
    steps: tuple[float, ...]
    flops: tuple[float, ...]
    prices: Prices


@dataclass(frozen=True, slots=True)
class Captured:
    """The captured model, and what runs its graphs: blocks compiled once, new decisions as they are."""

    model: api.Prepared
    backend: Backend


class WarmModel:
    """The model of one server."""

    def __init__(self, given: Given) -> None:
        """Loads the pipeline. Raises UnknownModel (MC0704), OptionRefused (MC0705)."""
        self._given = given
        embedded = given.model == EMBEDDED
        self._own = EMBEDDED_SETTINGS if embedded else Settings()
        self._fps = DEFAULTS.fps if embedded else DEFAULT_FPS
        folder = find_folder(given.model)
        self._pipe = load_pipeline(folder, Placement.of(given.device, given.dtype, False))
        self._captured: dict[str, Captured] = {}
        self._models: dict[str, CompiledModel] = {}
        self._vanillas: dict[str, Vanilla] = {}

    def loaded(self) -> Loaded:
        """What the page offers. Sizes of the embedded model are ready-made; another one's are the command line's."""
        own = replace(self._own, **self._given.settings)  # type: ignore[arg-type]
        made = {"as asked for": own}
        if self._given.model == EMBEDDED and not self._given.settings:
            made = {n: replace(own, **smaller.given()) for n, smaller in _SMALLER.items()}  # type: ignore[arg-type]
        presets = tuple(Preset(name, settings.given(), self._grid(settings)) for name, settings in made.items())
        return Loaded(type(self._pipe).__name__, self._own.prompt or "", self._given.seed, presets)

    def _grid(self, settings: Settings) -> Grid:
        """That of a run with these settings."""
        known = inspect.signature(self._pipe.__call__).parameters.get("num_inference_steps")
        steps = settings.num_inference_steps or int(known.default if known is not None else 50)
        return driver_for(self._pipe).grid(self._pipe, steps, call_arguments(self._pipe, settings))

    def prepare(self, tell: TellProgress) -> None:
        """Does before the first order what every order needs. Raises CaptureError."""
        first = self.loaded().presets[0]
        call = call_arguments(self._pipe, Settings(**first.settings))  # type: ignore[arg-type]
        self._capture(call, tell)

    def run(self, order: Order, tell: TellProgress) -> RunOutcome:
        """Generates under the policy and, if that is new, without it; writes videos and report. tell: may stop it.

        Raises what the policy, the model and the pipeline raise.
        """
        bound = bound_of(order.source, order.values)
        settings = Settings(**{**order.preset.settings, "prompt": order.prompt})  # type: ignore[arg-type]
        call = call_arguments(self._pipe, settings)
        captured = self._capture(call, tell)
        vanilla = self._vanilla(captured, settings, call, order.seed, tell)
        tell(RunProgress("compiling the policy", 0, 0))
        model = self._compiled(captured, bound, call)
        watched(model, thumbnails=True)
        watch = Stopwatch()
        name = bound.ir.name
        done = run_with(self._pipe, model, call, order.seed, watch.watch(_told(tell))(name))
        tell(RunProgress("writing the report", 0, 0))
        flops = count_by_row(model, model.events, vanilla.prices)
        share = sum(flops) / sum(vanilla.flops)
        ways = (
            Way(VANILLA, "compute", vanilla.done.seconds, 1.0, 1.0, vanilla.steps, vanilla.flops),
            Way(name, name, done.seconds, share_computed(model.events), share, watch.of(name), flops),
        )
        about = {"model": self._given.model, "policy": name, "parameters": dict(bound.values),
                 "backend": self._given.backend, "seed": order.seed, "call": {**call, **settings.given()}}  # fmt: skip
        record = record_of(model, ways, as_bytes([vanilla.done.video, done.video]), about, self._fps)
        self._write(order, record)
        return _outcome(model, record, vanilla.done, done)

    def _capture(self, call: Mapping[str, object], tell: TellProgress) -> Captured:
        driver = driver_for(self._pipe)
        key = _key([call.get(name) for name in driver.fixed])
        if key not in self._captured:
            tell(RunProgress("capturing the model", 0, 0))
            model, backend = capture_for(self._pipe, call), eager
            if self._given.backend == "inductor" and not model.model.opaque:
                backend = compile_roles(model, _COMMON, _compiling(tell))
            self._captured[key] = Captured(model, backend)
        found = self._captured[key]
        return replace(found, model=replace(found.model, call=driver.changing(call)))  # budgets are met at this size

    def _compiled(self, captured: Captured, bound: BoundPolicy, call: Mapping[str, object]) -> CompiledModel:
        """The policy on the model, with these parameters; the latest few are kept, and a parameter compiles nothing."""
        key = _key([show(bound.ir), driver_for(self._pipe).changing(call)])
        model = self._models.pop(key, None)
        if model is None:
            model = api.compile(
                self._pipe, bound.ir, backend=captured.backend, captured=captured.model,
                deny_refusals=self._given.deny_refusals, **bound.values,  # type: ignore[arg-type]
            )  # fmt: skip
            model.undo()
        model.set_parameters(**bound.values)
        self._models[key] = model
        while len(self._models) > _MODELS_KEPT:
            del self._models[next(iter(self._models))]
        return model

    def _vanilla(
        self, captured: Captured, settings: Settings, call: Mapping[str, object], seed: int, tell: TellProgress
    ) -> Vanilla:
        """The whole model's generation of this video; the latest few are kept."""
        key = _key([settings.given(), seed])
        known = self._vanillas.pop(key, None)
        if known is None:
            model = self._compiled(captured, bound_of_compute(), call)
            watch = Stopwatch()
            with last_call(model) as seen:
                if not self._vanillas:  # the first call of all is slower
                    run_with(self._pipe, model, call, seed, lambda *_: None, 1)
                done = run_with(self._pipe, model, call, seed, watch.watch(_told(tell))(VANILLA))
            prices = prices_of(model, seen)
            known = Vanilla(done, watch.of(VANILLA), count_by_row(model, model.events, prices), prices)
        self._vanillas[key] = known
        while len(self._vanillas) > _VIDEOS_KEPT:
            del self._vanillas[next(iter(self._vanillas))]
        return known

    def _write(self, order: Order, record: Record) -> None:
        order.folder.mkdir(parents=True, exist_ok=True)
        one, other = record.videos[0], record.videos[-1]
        scale = max(1, _SHOWN // min(other.shape[1:3]))
        write_mp4(order.folder / SIDE_BY_SIDE, np.concatenate([one, other], axis=2), self._fps, scale)
        write_mp4(order.folder / ALONE, other, self._fps, scale)
        write_page(record, order.folder / REPORT)


def bound_of_compute() -> BoundPolicy:
    """The policy that computes everything."""
    return BoundPolicy(load_policy("compute"), {})


def _compiling(tell: TellProgress) -> Callable[[str, int, int, float], None]:
    """Tells each graph that was compiled."""
    return lambda role, done, total, _: tell(RunProgress(f"compiling {role}", done, total))


def _told(tell: TellProgress) -> Callable[[str], OnStep]:
    """Tells each step of a generation by its name."""
    return lambda name: lambda done, total: tell(RunProgress(name, done, total))


def _key(of: object) -> str:
    return json.dumps(of, sort_keys=True, default=str)


def _outcome(model: CompiledModel, record: Record, vanilla: Generation, done: Generation) -> RunOutcome:
    frames = psnr_per_frame(done.video, vanilla.video)
    whole, worst = psnr(done.video, vanilla.video), min(frames)
    own = record.ways[-1]
    return RunOutcome(
        said=announce(model),
        seconds=done.seconds,
        vanilla_seconds=vanilla.seconds,
        tokens=own.tokens,
        flops=1.0 if own.flops is None else own.flops,
        psnr=whole if math.isfinite(whole) else None,
        worst=worst if math.isfinite(worst) else None,
        worst_frame=frames.index(worst),
        refusals=record.refusals,
        warnings=model.summary().warnings,
    )
