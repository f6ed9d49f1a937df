"""Whole generations of one pipeline under many policies: what the ladder and the peers have in common."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from diffusers import DiffusionPipeline

from mccompile import api
from mccompile.generate.compare import Announce, Contender, capture_for, last_call, run_with
from mccompile.generate.flops import Prices, count, prices_of
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, Generation, Settings, Video, call_arguments
from mccompile.language.load import load_policy
from mccompile.metrics.pixels import psnr, ssim
from mccompile.models.embedded.judge import Verdict, judge
from mccompile.pipelines.errors import PipelineFailed
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import share_computed
from mccompile.studio.bench.report import Json, Row
from mccompile.studio.bench.timing import CallTimer, ratio

VANILLA, EAGER, EXACT = "vanilla", "vanilla, eager", "exact"
Policies: TypeAlias = Mapping[str, Sequence[Mapping[str, float]]]  # settings of each policy
LADDER: Policies = {
    "fixed_interval": ({"interval": 2}, {"interval": 3}, {"interval": 5}),
    "teacache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}),
    "flowcache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}),
    "fbcache": ({"threshold": 0.03}, {"threshold": 0.08}, {"threshold": 0.15}),
    "motioncache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.4}),
}
WARM_UP_STEPS = 2
FAILURES = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError, PipelineFailed)
BETWEEN = 5
"""Ways between two timings of the first: a machine that others share is not equally fast for minutes."""
FALLBACK_PROMPT = "a red circle moving right over a slate texture"


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """A pipeline, captured, and the call that every way makes. judged: the prompt for the embedded model's judge."""

    pipe: DiffusionPipeline
    call: Mapping[str, object]
    captured: api.Prepared
    judged: str | None


def load(model: str, place: Placement, changes: Settings | None = None) -> GenerationJob:
    """The pipeline of a name or folder. changes: settings that differ from the model's own. Raises UnknownModel."""
    embedded = model == EMBEDDED
    base = EMBEDDED_SETTINGS if embedded else Settings(prompt=FALLBACK_PROMPT)
    settings = dataclasses.replace(base, **(changes or Settings()).given())  # type: ignore[arg-type]
    pipe = load_pipeline(find_folder(model), place)
    call = call_arguments(pipe, settings)
    return GenerationJob(pipe, call, capture_for(pipe, call), settings.prompt if embedded else None)


def contenders(policies: Policies) -> tuple[Contender, ...]:
    """Vanilla, exact, then every policy at each of its settings: `motioncache 0.1` and so on."""
    found = [Contender(VANILLA, load_policy("compute"), {}), Contender(EXACT, load_policy("exact"), {})]
    for policy, settings in policies.items():
        for values in settings:
            label = " ".join((policy, *(f"{v:g}" for v in values.values())))
            found.append(Contender(label, load_policy(policy), values))
    return tuple(found)


@dataclass(slots=True)
class Lap:
    """The timed runs of one way so far, the video of the last one, or the error that ended it.

    base: for each of them the seconds of the first way, the mean of its run before and of its run after.
    """

    seconds: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    video: Video | None = None
    error: str = ""


Run = Callable[[int | None], Generation]  # None, or after how many steps to stop


def take_turns(runs: Mapping[str, Run], repeat: int, clock: CallTimer) -> dict[str, Lap]:
    """A short untimed run of each way, then `repeat` rounds; a way that fails is left out from then on.

    In a round the first way runs before and after every BETWEEN others, which are measured against it.
    """
    laps = {name: Lap() for name in runs}
    first, *others = runs
    for name in runs:
        _one(laps[name], runs[name], False, clock)
    for _ in range(repeat):
        _one(laps[first], runs[first], True, clock)
        for at in range(0, len(others), BETWEEN):
            some = [name for name in others[at : at + BETWEEN] if not laps[name].error]
            for name in some:
                _one(laps[name], runs[name], True, clock)
            if some and not laps[first].error:
                _one(laps[first], runs[first], True, clock)
                around = statistics.mean(laps[first].seconds[-2:])
                for name in some:
                    if not laps[name].error:
                        laps[name].base.append(around)
    laps[first].base = list(laps[first].seconds)
    return laps


def _one(lap: Lap, way: Run, whole: bool, clock: CallTimer) -> None:
    made: list[Generation] = []
    try:
        spent = clock.seconds(lambda: made.append(way(None if whole else WARM_UP_STEPS)))
    except FAILURES as error:
        lap.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
    else:
        lap.seconds += [spent] if whole else []
        lap.video = made[0].video


def runs_of(job: GenerationJob, models: Mapping[str, CompiledModel], announce: Announce) -> dict[str, Run]:
    """Every model in the pipeline's transformer's place."""
    return {
        name: lambda stop, n=name, m=model: run_with(job.pipe, m, job.call, 0, announce(n), stop)  # type: ignore[misc]
        for name, model in models.items()
    }


def measure(
    job: GenerationJob, models: Mapping[str, CompiledModel], others: Mapping[str, Run], repeat: int, announce: Announce,
    clock: CallTimer,
) -> tuple[Row, ...]:  # fmt: skip
    """Our models, vanilla the first of them, then other ways, all in turn; one row each, near to vanilla or not."""
    reference = models[VANILLA]
    with last_call(reference) as call:
        laps = take_turns({**runs_of(job, models, announce), **others}, repeat, clock)
    base, prices = laps[VANILLA], prices_of(reference, call)
    whole = count(reference, reference.events, prices)
    rows = []
    for name, lap in laps.items():
        row = _near(name, lap, base.video, job.judged)
        if name in models and not lap.error:
            row |= _work(models[name], prices, whole, row)
        rows.append(row)
    return tuple(rows)


def _near(name: str, lap: Lap, vanilla: Video | None, prompt: str | None) -> dict[str, Json]:
    """Time, and distance from vanilla's video."""
    row: dict[str, Json] = {"name": name, "kind": name.split(" ")[0].rstrip(","), "remark": lap.error or None}
    if lap.error or lap.video is None or vanilla is None:
        return row
    near = psnr(lap.video, vanilla)
    return row | {
        "seconds": list(lap.seconds), "vanilla_seconds": list(lap.base), "median": statistics.median(lap.seconds),
        "speed_up": ratio(lap.base, lap.seconds), "psnr": near if math.isfinite(near) else None,
        "ssim": ssim(lap.video, vanilla), "judge": judged(judge(lap.video, prompt)) if prompt is not None else None,
    }  # fmt: skip


def _work(model: CompiledModel, prices: Prices, whole: float, row: Row) -> dict[str, Json]:
    """What was computed, of vanilla's; realised/ideal is the speed-up times the share of the FLOPs."""
    flops = count(model, model.events, prices) / whole
    seconds, speed_up = row["median"], row["speed_up"]
    assert isinstance(seconds, float)
    assert isinstance(speed_up, float)
    return {
        "tokens": share_computed(model.events), "flops": flops, "realised_over_ideal": speed_up * flops,
        "ms": 1e3 * seconds / len({(e.row, e.branch) for e in model.events}),
    }  # fmt: skip


def judged(verdict: Verdict | None) -> str | None:
    """Which of the prompt's demands the judge saw met."""
    if verdict is None:
        return None
    parts = (("colour", verdict.colour_right), ("motion", verdict.motion_right))
    return " and ".join(what for what, right in parts if right) or "no"
