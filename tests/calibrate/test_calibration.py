"""Calibrations of the embedded model at its smallest: what is measured is what the model does."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mccompile import ir
from mccompile.generate.compare import unannounced
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS, call_arguments, generate
from mccompile.language.coefficients import read_sets
from mccompile.language.load import load_policy
from mccompile.policy.influence import beyond, fits_of
from mccompile.studio.calibrate import job as jobs
from mccompile.studio.calibrate.asked import asked_by, slug
from mccompile.studio.calibrate.errors import NotMeasurable, WorthlessFit
from mccompile.studio.calibrate.job import CalibrationJob, run
from mccompile.studio.calibrate.samples import Samples, read_samples
from mccompile.studio.explore.prompts import Prompts
from tests.cli.conftest import one_capture  # noqa: F401  # fixture

PROMPTS = Prompts(
    ("a red circle moving right over a slate texture", "a blue square moving up over a sand texture"),
    ("a green triangle moving left over a slate texture",),
)
SMALL = {"num_inference_steps": 4, "num_frames": 7, "height": 32, "width": 32, "ar_step": 0}
SIGNALS = ("rel_l1(modulation)", "l1(latent)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrate")


def job_in(folder: Path) -> CalibrationJob:
    return CalibrationJob(
        command="mccompile calibrate",
        name="tiny",
        asked=asked_by(SIGNALS, load_policy("fbcache")),
        model="embedded",
        folder=find_folder(EMBEDDED),
        place=Placement.of("cpu", None, False),
        settings=replace(EMBEDDED_SETTINGS, **SMALL),
        seed=0,
        prompts=PROMPTS,
        out=folder / "tiny.toml",
        backend="eager",
        ages=2,
        sensitive=True,
        least_r2=0.0,
    )


def measured(job: CalibrationJob) -> list[str]:
    """Carries the calibration out, however good its fits are; what was said."""
    said: list[str] = []
    with contextlib.suppress(WorthlessFit):
        run(job, unannounced, None, said.append)
    return said


class Calls:
    """Every call of the plain transformer in a plain generation, with what it gave."""

    def __init__(self) -> None:
        self.seen: list[tuple[Mapping[str, torch.Tensor], torch.Tensor]] = []

    def __call__(self, _: nn.Module, __: object, call: dict[str, torch.Tensor], made: tuple[torch.Tensor]) -> None:
        self.seen.append((dict(call), made[0].clone()))


def moved(now: torch.Tensor, then: torch.Tensor) -> float:
    return float((now - then).abs().mean() / (then.abs().mean() + 1e-8))


@pytest.mark.usefixtures("one_capture")
def test_what_is_measured_is_what_the_model_does(folder: Path) -> None:
    """An oracle that hooks the stock pipeline: outputs, latents, modulation and residuals of the cond branch."""
    job = job_in(folder)
    measured(job)
    about = {**job.about(), "prompt": PROMPTS.seen[0]}
    found = read_samples(jobs._file(job, PROMPTS.seen[0]), about)
    assert found is not None
    calls, hidden = Calls(), list[tuple[torch.Tensor, torch.Tensor]]()
    pipe = load_pipeline(job.folder, job.place)
    blocks = pipe.transformer.blocks
    entered: list[torch.Tensor] = []
    hooks = [
        nn.Module.register_forward_hook(pipe.transformer, calls, with_kwargs=True),
        blocks[1].register_forward_pre_hook(lambda _, given: entered.append(given[0].clone())),
        blocks[-1].register_forward_hook(lambda _, __, made: hidden.append((entered[-1], made.clone()))),
    ]
    settings = replace(job.settings, prompt=PROMPTS.seen[0])
    generate(pipe, call_arguments(pipe, settings), 0, lambda done, total: None)
    for hook in hooks:
        hook.remove()
    cond = [made for (_, made) in calls.seen[::2]]
    latents = [call["hidden_states"] for call, _ in calls.seen[::2]]
    residuals = [out - entry for entry, out in hidden[::2]]
    row = (found.pair("branch") == found.branches.index("cond")) & (found.pair("chunk") == 0)
    for step in range(1, 4):
        for age in range(1, min(step, 2) + 1):
            own = row & (found.pair("step") == step) & (found.pair("age") == age)
            assert own.sum() == 1
            assert found.pair("output")[own] == pytest.approx(moved(cond[step], cond[step - age]), rel=1e-4)
            distance = float((latents[step] - latents[step - age]).abs().mean())
            assert found.pair("signal latent_l1")[own] == pytest.approx(distance, rel=1e-4)
            a, b = residuals[step], residuals[step - age]
            error = float((a - b).abs().mean() / a.abs().mean())
            assert found.pair("residual 0")[own] == pytest.approx(error, rel=1e-4)
    ratio = [1.0, *(float((a.norm(dim=-1) / b.norm(dim=-1)).mean()) for b, a in pairwise(residuals))]
    own = found.step("branch") == found.branches.index("cond")
    assert found.step("ratio 0")[own] == pytest.approx(ratio[1:], rel=1e-4)
    with torch.no_grad():
        again = pipe.transformer(**{**calls.seen[2][0], "timestep": calls.seen[0][0]["timestep"]})[0]
    by_latent = float((again - cond[0]).square().mean().sqrt() / (latents[1] - latents[0]).square().mean().sqrt())
    assert found.step("to latent")[own][0] == pytest.approx(by_latent, rel=1e-3)


@pytest.mark.usefixtures("one_capture")
def test_it_goes_on_where_it_was_stopped_and_gives_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second prompt, begun again: only what is missing is measured, and the text is that of one go."""
    whole = job_in(folder)
    measured(whole)
    job = job_in(tmp_path)
    runs = 0

    def stopped(*given: object, **more: object) -> object:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise KeyboardInterrupt
        return jobs_run(*given, **more)  # type: ignore[operator]

    jobs_run = jobs.run_with
    monkeypatch.setattr(jobs, "run_with", stopped)
    with pytest.raises(KeyboardInterrupt):
        measured(job)
    assert not job.out.exists()
    assert len(list(job.kept.glob("*.npz"))) == 1
    damaged = next(iter(job.kept.glob("*.npz")))
    runs = 2
    (said,) = measured(job)
    assert "1 of 3 prompts are measured" in said
    assert runs == 4
    assert job.out.read_text() == whole.out.read_text()
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert "2 of 3 prompts" in measured(job)[0]
    assert runs == 5


@pytest.mark.usefixtures("one_capture")
def test_policies_name_the_sets_of_the_file(folder: Path) -> None:
    job = job_in(folder)
    measured(job)
    text = tomllib.loads(job.out.read_text())
    assert text["about"]["prompts"] == list(PROMPTS.seen)
    assert text["about"]["versions"] == jobs.versions()
    sets = read_sets(job.out)
    assert {name for kind, name in sets if kind == "table"} == {
        "tiny_ratios", "tiny_ratios_cond", "tiny_ratios_uncond", "tiny_error_1", "tiny_error_2",
        "tiny_sensitivity_latent", "tiny_sensitivity_timestep",
    }  # fmt: skip
    assert all(len(s.values) == 4 for (kind, _), s in sets.items() if kind == "table")
    mine = folder / "mine.policy"
    mine.write_text(
        'policy mine extends fbcache {\n  signal change = rel_l1(probe) * table("tiny.toml:tiny_ratios")\n'
        "  phase cache { reuse chunk while accumulate(change) < threshold }\n}\n"
    )
    (signal,) = load_policy(mine).signals
    assert isinstance(signal.expr, ir.Apply)
    assert signal.expr.args[1] == ir.Table(sets["table", "tiny_ratios"].values)


def test_a_fit_is_told_where_it_is_used_beyond_what_it_has_seen(tmp_path: Path) -> None:
    (tmp_path / "fits.toml").write_text(
        '[polynomial.mine]\nsource = "a test"\nvalues = [0.5, 0.0]\ndomain = [0, 0.2]\nfitted = [0.01, 0.2]\n'
    )
    path = tmp_path / "p.policy"
    path.write_text(
        'policy p {\n  signal drift = rel_l1(modulation) | polynomial("fits.toml:mine")\n'
        "  phase all { reuse chunk while accumulate(drift) < 0.1 }\n  layers blocks[*] { keep residual }\n}\n"
    )
    (fit,) = fits_of(load_policy(path))
    told = beyond(fit, [("step 1", 0.1), ("step 2", 0.35), ("step 3", 0.3)], "3 steps")
    assert "polynomial mine is used beyond what it was fitted on at 2 of 3 steps" in told
    assert "0.35 at step 2; it was fitted on 0.01 to 0.2" in told
    assert beyond(fit, [("step 1", 0.2), ("step 2", 0.205)], "2 steps") == ""


ODD = ["step", "rel_l1(latent, over = token)", "rel_l1(nothing)", "motion + 1", "kept(sigma)"]


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_distance_is_refused(text: str) -> None:
    with pytest.raises(NotMeasurable, match="MC0772"):
        asked_by([text], None)


def test_signals_and_regions_are_those_of_a_policy() -> None:
    asked = asked_by([], load_policy("motioncache"))
    assert [slug(s) for s in asked.signals] == ["modulation"]
    assert asked_by([], load_policy("deltadit")).kept == ("front", "rear")
    assert asked_by([], load_policy("fbcache")).kept == ("blocks 1..-1",)
    assert [slug(s) for s in asked_by(["l1(latent)"], None).signals] == ["latent_l1"]
    with pytest.raises(NotMeasurable, match="increments"):
        asked_by([], load_policy("motioncache_magi1"))


def test_two_prompts_at_least_are_fitted(folder: Path) -> None:
    job = replace(job_in(folder), prompts=Prompts(PROMPTS.seen[:1], PROMPTS.held_out))
    with pytest.raises(NotMeasurable, match="1 prompt is seen"):
        run(job, unannounced, None, print)


def test_a_worthless_fit_is_told_and_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that do not follow the signal: no polynomial, but the tables."""
    signals = ("signal modulation", "signal latent_l1")
    names = ("branch", "chunk", "step", "age", "output", "latent", *signals, "residual 0")
    steps = ("branch", "chunk", "step", "to latent", "to timestep", "ratio 0")
    generator = np.random.default_rng(0)

    def made(prompt: str) -> Samples:
        pairs = generator.uniform(0.1, 0.9, (40, len(names)))
        pairs[:, :4] = [[0, 0, 1 + n % 3, 1] for n in range(40)]
        pairs[:, names.index("signal latent_l1")] = 2 * pairs[:, names.index("output")]
        rows = np.array([[0, 0, n, np.nan, np.nan, 0.9] for n in range(1, 4)])
        return Samples(("cond",), names, pairs, steps, rows)

    monkeypatch.setattr(jobs, "_measured", lambda job, *_: {p: made(p) for p in (*PROMPTS.seen, *PROMPTS.held_out)})
    job = replace(job_in(tmp_path), least_r2=0.5)
    with pytest.raises(WorthlessFit, match="MC0771") as refused:
        run(job, unannounced, None, print)
    assert "for modulation" in str(refused.value)
    sets = read_sets(job.out)
    assert ("polynomial", "tiny_latent_l1") in sets
    assert ("polynomial", "tiny_modulation") not in sets
    assert sets["table", "tiny_ratios"].values == (1.0, 0.9, 0.9, 0.9)
    assert sets["polynomial", "tiny_latent_l1"].values[0] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.usefixtures("one_capture")
def test_parts_of_blocks_are_measured_apart(tmp_path: Path) -> None:
    """Each kind of module has its own error: the mean over the blocks of what its modules return (SmoothCache)."""
    settings = replace(EMBEDDED_SETTINGS, **{**SMALL, "num_inference_steps": 3})
    asked = asked_by((), load_policy("fora"))
    assert asked.kept == ("attn", "cross", "ffn")
    job = replace(job_in(tmp_path), asked=asked, settings=settings, ages=1, sensitive=False)
    measured(job)
    names = {name for kind, name in read_sets(job.out) if kind == "table" and "error" in name}
    assert names == {"tiny_error_1_attn", "tiny_error_1_cross", "tiny_error_1_ffn"}
    found = read_samples(jobs._file(job, PROMPTS.seen[0]), {**job.about(), "prompt": PROMPTS.seen[0]})
    assert found is not None
    pipe = load_pipeline(job.folder, job.place)
    returned: dict[tuple[int, int], list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, made, at=(part, n): returned.setdefault(at, []).append(made.clone())
        )
        for n, block in enumerate(pipe.transformer.blocks)
        for part, module in enumerate((block.attn1, block.attn2, block.ffn))
    ]
    generate(pipe, call_arguments(pipe, replace(settings, prompt=PROMPTS.seen[0])), 0, lambda done, total: None)
    for hook in hooks:
        hook.remove()
    cond = (found.pair("branch") == found.branches.index("cond")) & (found.pair("chunk") == 0)
    for part in range(3):
        of_cond = [made[::2] for (kind, _), made in returned.items() if kind == part]
        for step in (1, 2):
            own = cond & (found.pair("step") == step)
            errors = [float((m[step] - m[step - 1]).abs().mean() / m[step].abs().mean()) for m in of_cond]
            assert found.pair(f"residual {part}")[own] == pytest.approx(np.mean(errors), rel=1e-3)
