"""A calibration from its settings to a file of sets: a run per prompt, kept as it ends, and the fits of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mccompile.backend.inductor import Progress
from mccompile.generate.compare import Announce, Contender, capture_for, compile_contenders, run_with
from mccompile.generate.load import load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.places import prepare_place, put
from mccompile.generate.run import Settings, call_arguments
from mccompile.policy.text import show
from mccompile.resources import own_version
from mccompile.runtime.compiled import CompiledModel
from mccompile.studio.calibrate.asked import Measurement, slug
from mccompile.studio.calibrate.errors import NotMeasurable, WorthlessFit
from mccompile.studio.calibrate.fitting import Fit, Moves, fit
from mccompile.studio.calibrate.samples import Samples, read_samples, write_samples
from mccompile.studio.calibrate.sets import CalibratedSets, tables_of
from mccompile.studio.calibrate.watching import WatchedRun
from mccompile.studio.calibrate.writing import text_of
from mccompile.studio.explore.prompts import Prompts

FEWEST_SEEN = 2  # prompts that a fit sees: its degree is chosen by leaving one out


@dataclass(frozen=True, slots=True)
class CalibrationJob:
    """A calibration. command: the words that began it. name: how the names of its sets begin.

    ages: how many earlier steps each step is compared with. least_r2: below it a polynomial is worthless.
    """

    command: str
    name: str
    asked: Measurement
    model: str
    folder: Path
    place: Placement
    settings: Settings
    seed: int
    prompts: Prompts
    out: Path
    backend: str
    ages: int
    sensitive: bool
    least_r2: float

    def about(self) -> dict[str, object]:
        """What its samples depend on, but for their prompts."""
        return {
            "model": self.model,
            "measures": hashlib.sha256(show(self.asked.policy).encode()).hexdigest()[:16],
            "video": {k: v for k, v in self.settings.given().items() if k != "prompt"},
            "seed": self.seed,
            "ages": self.ages,
            "sensitivities": self.sensitive,
            "place": asdict(self.place),
            "versions": versions(),
        }

    @property
    def kept(self) -> Path:
        """The folder of the samples, beside the file."""
        return self.out.with_suffix(".samples")


def versions() -> dict[str, str]:
    """Of what the numbers come from."""
    return {"mccompile": own_version(), "torch": torch.__version__}


def check(job: CalibrationJob) -> None:
    """Raises NotMeasurable (MC0772) for prompts that are too few."""
    if len(job.prompts.seen) < FEWEST_SEEN:
        why = f"{len(job.prompts.seen)} prompt is seen by the fits"
        remedy = f"give {FEWEST_SEEN + 1} prompts or more: the last quarter, at least one, is held out"
        raise NotMeasurable("with these prompts, the model", why, remedy)


def run(
    job: CalibrationJob, announce: Announce, compiled: Progress | None, said: Callable[[str], None]
) -> CalibratedSets:
    """Measures what is not kept yet, fits, and writes the file.

    Raises WorthlessFit (MC0771) for polynomials below the least R2; the file then has the other sets. Raises what the
    pipeline and the capture raise.
    """
    check(job)
    prepare_place(job.out)
    samples = _measured(job, announce, compiled, said)
    seen = [samples[p] for p in job.prompts.seen]
    held_out = [samples[p] for p in job.prompts.held_out]
    fits = {s: fit(_pairs(seen, slug(s)), _pairs(held_out, slug(s))) for s in job.asked.signals}
    good = {slug(s): found for s, found in fits.items() if found.r2 >= job.least_r2}
    sets = CalibratedSets(job.name, good, tables_of(seen, job.asked.kept, job.ages))
    if good or sets.tables:
        text = text_of(job.command, job.about(), job.prompts, sets)
        put(job.out, lambda draft: draft.write_text(text, encoding="utf-8"))
    bad = {slug(s): found for s, found in fits.items() if found.r2 < job.least_r2}
    if bad:
        raise WorthlessFit([_worthless(name, found, job.least_r2) for name, found in bad.items()])
    return sets


def _worthless(name: str, found: Fit, least: float) -> str:
    return (
        f"{name}: on the held-out prompts its best fit, of degree {found.degree}, has R2 {found.r2:.2f}, "
        f"below {least:g}; it says too little of how far the output moves"
    )


def _pairs(samples: Sequence[Samples], name: str) -> list[Moves]:
    return [Moves(s.pair(f"signal {name}"), s.pair("output")) for s in samples]


def _measured(
    job: CalibrationJob, announce: Announce, compiled: Progress | None, said: Callable[[str], None]
) -> Mapping[str, Samples]:
    """The samples of every prompt, from a file or from a run."""
    prompts = tuple(dict.fromkeys((*job.prompts.seen, *job.prompts.held_out)))
    found: dict[str, Samples] = {}
    for prompt in prompts:
        known = read_samples(_file(job, prompt), {**job.about(), "prompt": prompt})
        if known is not None:
            found[prompt] = known
    if found:
        said(f"going on with {job.kept}: {len(found)} of {len(prompts)} prompts are measured")
    if len(found) == len(prompts):
        return found
    pipe = load_pipeline(job.folder, job.place)
    model = _compiled(pipe, job, compiled)
    for number, prompt in enumerate(prompts, 1):
        if prompt not in found:
            watch = WatchedRun(job.asked.signals, job.ages, job.sensitive)
            arguments = call_arguments(pipe, replace(job.settings, prompt=prompt))
            with watch.watching(model):
                run_with(pipe, model, arguments, job.seed, announce(f"prompt {number} of {len(prompts)}"))
            found[prompt] = watch.samples()
            if not len(found[prompt].pairs):
                why = "a run of a prompt has no two steps of one chunk"
                raise NotMeasurable(job.model, why, "give more --steps")
            write_samples(_file(job, prompt), found[prompt], {**job.about(), "prompt": prompt})
    return found


def _compiled(pipe: object, job: CalibrationJob, progress: Progress | None) -> CompiledModel:
    """The model under the policy that measures."""
    way = Contender(job.asked.policy.name, job.asked.policy, {})
    captured = capture_for(pipe, call_arguments(pipe, job.settings))
    model = compile_contenders(pipe, captured, [way], job.backend, progress, fold=False)[way.name]
    if len(model.experts) > 1:
        why = "two transformers take turns in it, and each needs fits of its own"
        raise NotMeasurable(f"pipeline {type(pipe).__name__}", why, "calibrate a pipeline of one transformer")
    return model


def _file(job: CalibrationJob, prompt: str) -> Path:
    key = hashlib.sha256(json.dumps([job.about(), prompt], sort_keys=True).encode()).hexdigest()[:16]
    return job.kept / f"{key}.npz"
