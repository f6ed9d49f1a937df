"""Searches on the embedded model at its smallest: what is counted, predicted, emitted and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import mccompile.api
import mccompile.generate.compare
from mccompile import ir
from mccompile.generate.load import EMBEDDED, find_folder
from mccompile.generate.placement import Placement
from mccompile.generate.run import EMBEDDED_SETTINGS
from mccompile.language.load import load_policy
from mccompile.studio.explore.goals import parse_goal
from mccompile.studio.explore.job import Emitted, Job, Session
from mccompile.studio.explore.outcome import Outcome
from mccompile.studio.explore.prompts import EMBEDDED as EMBEDDED_PROMPTS
from mccompile.studio.explore.prompts import split
from mccompile.studio.explore.space import Point
from tests.cli.conftest import Shell, one_capture, shell  # noqa: F401  # fixtures

SMALL = {"num_inference_steps": 4, "num_frames": 15, "height": 32, "width": 32, "ar_step": 2}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        bases=("teacache", "motioncache"),
        fixed={"warmup": 1.0},
        model="embedded",
        folder=find_folder(EMBEDDED),
        place=Placement.of("cpu", None, False),
        settings=replace(EMBEDDED_SETTINGS, **SMALL),
        seed=0,
        prompts=split(EMBEDDED_PROMPTS),
        out=tmp_path,
        trials=3,
        sampler="random",
        each=3,
        goals=(parse_goal("fastest above 10 dB"),),
        backend="eager",
        statics=(2,),
    )


def nothing(name: str):  # type: ignore[no-untyped-def]
    return lambda done, total: None


@pytest.mark.usefixtures("one_capture")
def test_a_search_captures_and_compiles_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is compiled before the first trial; then nothing may be, and vanilla is generated once per prompt."""
    session = Session(job, nothing, None)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a trial captured or compiled")

    with monkeypatch.context() as patch:
        for module in (mccompile.api, mccompile.generate.compare):
            patch.setattr(module, "lower", forbidden)
        patch.setattr(mccompile.api, "prepare", forbidden)
        found = session.search(lambda trial: None)
        assert found.failures == []
        work = session.work()
        assert (work.captures, work.compiled) == (1, 5)  # vanilla, the cost table, two policies and a static schedule
        assert work.vanilla == len(job.prompts.seen)
        measured = len(job.prompts.seen)  # runs that the cost table was measured on
        assert work.runs == measured + len(job.prompts.seen) * sum(t.twin is None for t in found.trials)
        emitted = session.emit(job.goals[0], found)
        (static,) = session.emit_statics(found)
    _a_static_schedule_folds_away(static)
    _a_static_plan_costs_what_is_predicted(session, job)
    text = emitted.path.read_text()
    policy = load_policy(emitted.path)
    for value in emitted.trial.point.values.items():
        assert value in {(p.name, p.default) for p in policy.params}
    assert dict.fromkeys(p.default for p in policy.params if p.name == "warmup") == {1.0: None}
    assert all(prompt in text for prompt in (*job.prompts.seen, *job.prompts.held_out))
    assert "fastest above 10 dB" in text
    again = Session(job, nothing, None)
    assert again.search(lambda trial: None).trials == found.trials
    assert (again.work().vanilla, again.work().runs) == (0, 0)


def _a_static_schedule_folds_away(emitted: Emitted) -> None:
    """The best schedule of two computed steps is on the plane as a trial, and its file is a step mask."""
    assert emitted.trial.point == Point("static_2", {})
    (phase,) = load_policy(emitted.path).phases
    assert isinstance(phase.rule, ir.StepMask)
    assert phase.rule.compute[0]
    assert sum(phase.rule.compute) == 2
    assert "Held out and measured afterwards" in emitted.path.read_text()


def _a_static_plan_costs_what_is_predicted(session: Session, job: Job) -> None:
    """TeaCache decides by the timestep alone, so its cost is known before it runs; MotionCache's is bounded."""
    prompt = job.prompts.seen[0]
    for threshold in (0.02, 0.49):
        for name, exact in (("teacache", True), ("motioncache", False)):
            point = Point(name, {"threshold": threshold})
            least = session.engine.least_flops(point, prompt)
            assert least is not None
            ((_, ran),) = session.engine.run_all([point], (prompt,))
            assert isinstance(ran, Outcome)
            took = ran.flops
            assert took == pytest.approx(least, rel=1e-9) if exact else took >= least * (1 - 1e-9)


@pytest.mark.slow  # a search is tried above
@pytest.mark.usefixtures("one_capture")
def test_tune_writes_a_policy(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    words = ("--steps", 4, "--frames", 15, "--height", 32, "--width", 32, "--ar-step", 2, "--backend", "eager")
    target = tmp_path / "fast.policy"
    tune = ("tune", "1.2x", "--policy", "teacache", "--trials", 2, "--out", tmp_path / "study", "--to", target, *words)
    result = shell(*tune)
    assert result.status == 0, result.err
    assert "policies compiled before the first trial: 2, in the trials: 0" in result.out
    assert f"wrote {target}: on the held-out prompts" in result.out
    assert shell("check", target).status == 0
    assert shell("explore", "teacache", "--out", tmp_path / "study", "--seed", 1, *words).err.startswith(
        "error[MC0742]"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("explore",), "one POLICY or several --policies"),
        (("explore", "teacache", "--policies", "a,b"), "one POLICY or several --policies"),
        (("explore", "teacache", "--emit", "good"), "is no goal"),
        (("explore", "teacache", "--prompts", "none.txt"), "error[MC0741]"),
        (("explore", "teacache", "--held-out", "none.txt"), "belongs to --prompts"),
        (("explore", "teacache", "--static", "99", "--steps", "4"), "reuses nothing"),
        (("tune", "4x", "--set", "nothing=1", "--backend", "eager"), "error[MC0301]"),
    ],
)
def test_what_cannot_be_searched(
    words: tuple[str, ...],
    says: str,
    shell: Shell,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = shell(*words)
    assert result.status in (1, 2)
    assert says in result.err
