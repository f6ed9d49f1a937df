"""Runs one generation three ways from one seed (vanilla, exact, a policy), and says what each costs and changes."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from mccompile import api
from mccompile.backend.compiled_roles import CompiledRoles
from mccompile.backend.inductor import Progress, inductor
from mccompile.backend.record import Recorder
from mccompile.generate.flops import Prices, count, count_by_row, prices_of
from mccompile.generate.run import Generation, OnStep, Video, generate
from mccompile.ir import PolicyIR
from mccompile.language.load import load_policy
from mccompile.lowering.lower import lower
from mccompile.metrics.pixels import psnr, ssim
from mccompile.models.embedded.judge import Verdict, judge, named
from mccompile.pipelines.finding import clock_for, driver_for
from mccompile.policy.bind import bind
from mccompile.policy.budget import in_words
from mccompile.policy.facts import is_exact
from mccompile.policy.in_words import chosen, seen
from mccompile.runtime.blocks import eager
from mccompile.runtime.compiled import CompiledModel, of_other_form
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.trace import Event, share_computed

VANILLA, EXACT = "vanilla", "exact"
WARM_UP_STEPS = 2
Announce = Callable[[str], OnStep]  # the name of the run that begins; returns what is told its steps


def unannounced(_: str) -> OnStep:
    """Tells nobody of a run and of its steps."""
    return lambda done, total: None


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One way. seconds: of each timed run. tokens, flops: shares of vanilla's, 0..1. psnr, ssim: against vanilla."""

    name: str
    policy: str
    seconds: tuple[float, ...]
    tokens: float
    flops: float
    psnr: float
    ssim: float
    verdict: Verdict | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order vanilla, exact, policy, with their videos and the decisions of their last runs.

    step_flops: of each row of calls of the last runs, in FLOPs.
    """

    rows: tuple[ComparisonRow, ...]
    videos: Mapping[str, Video]
    events: Mapping[str, tuple[Event, ...]]
    step_flops: Mapping[str, tuple[float, ...]]

    def speed_up(self, row: ComparisonRow) -> float:
        """How many times faster than vanilla."""
        return self.rows[0].median / row.median


@dataclass(frozen=True, slots=True)
class Contender:
    """A way through the generation: its row's name, its policy and the values of its parameters."""

    name: str
    policy: PolicyIR
    parameters: Mapping[str, float]


def announce(model: CompiledModel) -> str:
    """One sentence that says what a run of `model` does to the numbers, including the effect of its budget."""
    policy = model.runner.lowered.policy
    if is_exact(policy):
        return f"policy {policy.name} is exact: the output is that of the model"
    as_computed = replace(policy.cache, dtype="model", residual="model")
    if is_exact(replace(policy, cache=as_computed)):
        return f"policy {policy.name} is approximate: its cache keeps {in_words(policy.cache)}"
    if policy.cache.window is not None and is_exact(replace(policy, cache=replace(as_computed, window=None))):
        more = "" if policy.cache.keys is None else f"; {chosen(policy.cache.keys)}"
        return f"policy {policy.name} is approximate: {seen(policy.cache.window)}{more}"
    return f"policy {policy.name} is approximate: reused tokens differ from computed ones"


def capture_for(pipe: object, arguments: Mapping[str, object]) -> api.Prepared:
    """The pipeline's transformer, captured as a call with these arguments uses it."""
    return api.prepare(pipe, call=driver_for(pipe).changing(arguments))


def within_budget(pipe: object, way: Contender, captured: api.Prepared) -> Contender:
    """The way with the measure that its policy's budget calls for, so that the graphs compiled for it are its own."""
    if way.policy.cache.budget is None:
        return way
    cache = api.keeping_of(pipe, way.policy, captured, way.parameters).cache
    return replace(way, policy=replace(way.policy, cache=cache))


def can_judge(prompt: str | None) -> bool:
    """Whether the embedded model's judge understands the prompt: it names one colour and one motion."""
    try:
        named(prompt or "")
    except ValueError:
        return False
    return True


def contenders(policy: PolicyIR, parameters: Mapping[str, float]) -> tuple[Contender, ...]:
    """Vanilla (policy `compute`), exact, and the policy under its own name."""
    return (
        Contender(VANILLA, load_policy("compute"), {}),
        Contender(EXACT, load_policy("exact"), {}),
        Contender(named_apart(policy.name), policy, parameters),
    )


def named_apart(policy: str) -> str:
    """The name of a policy's row in a comparison."""
    return policy if policy not in (VANILLA, EXACT) else f"{policy} (policy)"


def compile_contenders(
    pipe: object,
    captured: api.Prepared,
    ways: Sequence[Contender],
    backend: str,
    progress: Progress | None,
    deny_refusals: bool = False,
    fold: bool = True,
) -> dict[str, CompiledModel]:
    """Every way compiled, none installed. Graphs that several ways have in common are compiled once.

    fold: whether what the clock and the timestep decide is decided before the run.
    """
    ways = [within_budget(pipe, way, captured) for way in ways]
    chosen = eager if backend == "eager" else compile_roles(captured, ways, progress, fold)
    found = {}
    for way in ways:
        found[way.name] = api.compile(
            pipe,
            way.policy,
            backend=chosen,
            captured=captured,
            deny_refusals=deny_refusals,
            fold=fold,
            **way.parameters,  # type: ignore[arg-type]
        )
        found[way.name].undo()
    return found


def compile_roles(
    captured: api.Prepared, ways: Sequence[Contender], progress: Progress | None, fold: bool = True
) -> CompiledRoles:
    """Every graph of every way, compiled; graphs that several have in common once."""
    recorder = Recorder()
    for own in (captured, *captured.others.values()):
        for way in ways:
            lowered = lower(own.model, way.policy, own.prefixes, fold)
            record_roles(recorder, lowered, bind(way.policy, way.parameters), own.calls)
    return inductor(recorder, lowered, progress=progress)


def compare(
    pipe: object,
    models: Mapping[str, CompiledModel],
    arguments: Mapping[str, object],
    seed: int,
    repeat: int,
    announce: Announce,
    judged: str | None,
) -> Comparison:
    """Runs every way `repeat` times, taking turns, after one short untimed run of each.

    judged: the prompt that the embedded model's judge holds the videos against; None where it cannot judge.
    """
    for name, model in models.items():
        with last_call(model) as call:
            run_with(pipe, model, arguments, seed, announce(f"{name}: warm-up"), WARM_UP_STEPS)
    runs: dict[str, list[Generation]] = {name: [] for name in models}
    for turn in range(repeat):
        for name, model in models.items():
            label = f"{name} {turn + 1}/{repeat}" if repeat > 1 else name
            runs[name].append(run_with(pipe, model, arguments, seed, announce(label)))
    videos = {name: done[-1].video for name, done in runs.items()}
    events = {name: tuple(model.events) for name, model in models.items()}
    prices = prices_of(next(iter(models.values())), call)
    step_flops = {name: count_by_row(model, events[name], prices) for name, model in models.items()}
    return Comparison(_rows(models, runs, videos, events, prices, judged), videos, events, step_flops)


def run_with(
    pipe: object,
    model: CompiledModel,
    arguments: Mapping[str, object],
    seed: int,
    on_step: OnStep,
    stop_after: int | None = None,
) -> Generation:
    """One generation with `model` in the transformer's place; its events are those of this run only."""
    model.events.clear()
    if model.runner.masks is not None:
        model.runner.masks.clear()
    model.install(pipe, clock_for(pipe))
    watch = model.runner.watch
    try:
        with contextlib.nullcontext() if watch is None else watch.during(pipe):
            return generate(pipe, arguments, seed, on_step, stop_after)
    finally:
        model.undo()
        model.set_parameters()  # what the run kept is dropped: the next way needs the memory


@contextlib.contextmanager
def last_call(model: CompiledModel) -> Iterator[dict[str, object]]:
    """The arguments of the latest call inside, of whichever transformer, for the prices of its parts.

    A call of another form than the captured one has no prices.
    """
    seen: dict[str, object] = {}

    def note(module: CompiledModel, _: object, kwargs: dict[str, object], __: object) -> None:
        if not of_other_form(module.events[-1]):
            seen.clear()
            seen.update(kwargs)

    hooks = [nn.Module.register_forward_hook(each, note, with_kwargs=True) for each in model.experts]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _rows(
    models: Mapping[str, CompiledModel],
    runs: Mapping[str, Sequence[Generation]],
    videos: Mapping[str, Video],
    events: Mapping[str, tuple[Event, ...]],
    prices: Prices,
    judged: str | None,
) -> tuple[ComparisonRow, ...]:
    reference, rows = next(iter(models)), []
    whole = count(models[reference], events[reference], prices)
    for name, model in models.items():
        rows.append(
            ComparisonRow(
                name=name,
                policy=model.runner.lowered.policy.name,
                seconds=tuple(g.seconds for g in runs[name]),
                tokens=share_computed(events[name]),
                flops=count(model, events[name], prices) / whole,
                psnr=psnr(videos[name], videos[reference]),
                ssim=ssim(videos[name], videos[reference]),
                verdict=None if judged is None else judge(videos[name], judged),
            )
        )
    return tuple(rows)
