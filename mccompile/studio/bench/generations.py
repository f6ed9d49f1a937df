"""Whole generations of one pipeline under many policies: what the ladder and the peers have in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline

from mccompile import api
from mccompile.generate.compare import Announce, Comparison, Contender, capture_for, compare, compile_contenders
from mccompile.generate.compare import Row as Measured
from mccompile.generate.load import EMBEDDED, Place, find_folder, load_pipeline
from mccompile.generate.run import EMBEDDED_SETTINGS, Settings, call_arguments
from mccompile.lowering.backend import Progress
from mccompile.models.embedded.judge import Verdict
from mccompile.policy.from_checked import load_policy
from mccompile.studio.bench.report import Row
from mccompile.studio.bench.timing import ratio

VANILLA, EAGER, EXACT = "vanilla", "vanilla, eager", "exact"
LADDER: Mapping[str, tuple[Mapping[str, float], ...]] = {
    "fixed_interval": ({"interval": 2}, {"interval": 3}, {"interval": 5}),
    "teacache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}),
    "flowcache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}),
    "fbcache": ({"threshold": 0.03}, {"threshold": 0.08}, {"threshold": 0.15}),
    "motioncache": ({"threshold": 0.05}, {"threshold": 0.1}, {"threshold": 0.2}, {"threshold": 0.4}),
}
FALLBACK_PROMPT = "a red circle moving right over a slate texture"


@dataclass(frozen=True, slots=True)
class Job:
    """A pipeline, captured, and the call that every way makes. judged: the prompt for the embedded model's judge."""

    pipe: DiffusionPipeline
    call: Mapping[str, object]
    captured: api.Prepared
    judged: str | None


def load(model: str, place: Place, changes: Settings | None = None) -> Job:
    """The pipeline of a name or folder. changes: settings that differ from the model's own. Raises UnknownModel."""
    embedded = model == EMBEDDED
    base = EMBEDDED_SETTINGS if embedded else Settings(prompt=FALLBACK_PROMPT)
    settings = dataclasses.replace(base, **(changes or Settings()).given())  # type: ignore[arg-type]
    pipe = load_pipeline(find_folder(model), place)
    call = call_arguments(pipe, settings)
    return Job(pipe, call, capture_for(pipe, call), settings.prompt if embedded else None)


def contenders(policies: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[Contender, ...]:
    """Vanilla, exact, then every policy at each of its settings: `motioncache 0.1` and so on."""
    found = [Contender(VANILLA, load_policy("compute"), {}), Contender(EXACT, load_policy("exact"), {})]
    for policy, settings in policies.items():
        for values in settings:
            label = " ".join((policy, *(f"{v:g}" for v in values.values())))
            found.append(Contender(label, load_policy(policy), values))
    return tuple(found)


def run(
    job: Job, ways: Sequence[Contender], backend: str, repeat: int, announce: Announce, progress: Progress | None
) -> Comparison:
    """Every way `repeat` times, in turn; with a compiled backend also the vanilla model without compiling."""
    models = compile_contenders(job.pipe, job.captured, ways, backend, progress)
    if backend != "eager":
        plain = compile_contenders(job.pipe, job.captured, [Contender(EAGER, ways[0].policy, {})], "eager", None)
        models = {VANILLA: models[VANILLA], **plain, **models}
    return compare(job.pipe, models, job.call, 0, repeat, announce, job.judged)


def rows(found: Comparison) -> tuple[Row, ...]:
    """The rows of a comparison as JSON. realised/ideal: speed-up times share of the FLOPs."""
    base = found.rows[0]
    return tuple(_row(found, base, row) for row in found.rows)


def _row(found: Comparison, base: Measured, row: Measured) -> Row:
    speed_up = ratio(base.seconds, row.seconds)
    calls = len({(e.row, e.branch) for e in found.events[row.name]})
    return {
        "name": row.name,
        "kind": row.name.split(" ")[0].rstrip(","),
        "seconds": list(row.seconds),
        "median": row.median,
        "ms": 1e3 * row.median / calls,
        "tokens": row.tokens,
        "flops": row.flops,
        "speed_up": speed_up,
        "realised_over_ideal": speed_up * row.flops,
        "psnr": row.psnr if math.isfinite(row.psnr) else None,
        "ssim": row.ssim,
        "judge": judged(row.verdict),
    }


def judged(verdict: Verdict | None) -> str | None:
    """Which of the prompt's demands the judge saw met."""
    if verdict is None:
        return None
    parts = (("colour", verdict.colour_right), ("motion", verdict.motion_right))
    return " and ".join(what for what, right in parts if right) or "no"
