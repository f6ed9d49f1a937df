"""A study keeps what was finished: through kill -9, Ctrl-C and failures; and skips what need not run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mccompile.generate.errors import ClusterFailed, PromptsUnusable, RayMissing
from mccompile.studio.explore.errors import GoalUnmet, NotCalibrated, StudyDiffers, StudyUnreadable
from mccompile.studio.explore.goals import Goal, front, meeting, parse_goal
from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.prompts import read_prompts
from mccompile.studio.explore.rig import read_reference
from mccompile.studio.explore.search import Aim, Found, search
from mccompile.studio.explore.space import Point, grid
from mccompile.studio.explore.study import DATABASE, Sampler, Study
from tests.explore.fakes import FakeRig, outcome, spaces, study
from tests.house.tree import DOCS, ROOT


def run(
    of: Study, rig: FakeRig, trials: int = 8, goals: Sequence[Goal] = (), sampler: Sampler = "random", at_once: int = 1
) -> Found:
    return search(of, rig, Aim(("p",), trials, sampler, goals, at_once), lambda trial: None)


def test_a_study_goes_on_after_kill_9(tmp_path: Path) -> None:
    """Three trials are done and the fourth runs when the process dies: they stay, the fourth point runs again."""
    script = [sys.executable, "-m", "tests.explore.fakes", str(tmp_path)]
    with subprocess.Popen(script, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        process.kill()
    resumed = study(tmp_path)
    before = resumed.trials()
    assert [t.number for t in before] == [0, 1, 2]
    rig = FakeRig()
    found = run(resumed, rig)
    assert [t.number for t in found.trials] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found.trials[:3] == before
    assert found.failures == []
    assert len(rig.points) == 5


def test_the_point_that_was_cut_off_is_the_next_one(tmp_path: Path) -> None:
    rig = FakeRig(interrupts=2)
    found = run(study(tmp_path), rig)
    assert found.interrupted
    assert len(found.trials) == 2
    assert found.failures == []
    again = FakeRig()
    found = run(study(tmp_path), again, 4)
    assert again.points[0] == rig.points[2]
    assert not found.interrupted
    assert len(found.trials) == 4


def test_a_failed_trial_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    found = run(study(tmp_path), FakeRig(fails=(1, 3)), 6)
    assert len(found.trials) == 4
    assert [(f.number, f.why, f.skipped) for f in found.failures] == [
        (1, "run 1 went wrong", False),
        (3, "run 3 went wrong", False),
    ]
    assert run(study(tmp_path), FakeRig(), 6) == found


def test_a_bug_of_ours_is_not_swallowed(tmp_path: Path) -> None:
    class Broken(FakeRig):
        def run(self, point: Point, _: Sequence[str]) -> Outcome:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run(study(tmp_path), Broken())


def test_a_grid_is_searched_once(tmp_path: Path) -> None:
    rig = FakeRig()
    found = run(study(tmp_path, "grid"), rig, 100, sampler="grid")
    assert [p.values["threshold"] for p in rig.points] == [0.01, 0.133, 0.255, 0.378, 0.5]
    assert len(found.trials) == 5


def test_one_schedule_runs_once(tmp_path: Path) -> None:
    """Where nothing is left to data, points of one plan have one result; where data decides, each runs."""
    rig = FakeRig(static=True)
    found = run(study(tmp_path / "static"), rig, 12)
    plans = {min(int(t.point.values["threshold"] * 10), 2) for t in found.trials}
    assert len(rig.points) == len(plans) < 12
    by_number = {t.number: t for t in found.trials}
    for trial in found.trials:
        if trial.twin is not None:
            assert trial.outcome == by_number[trial.twin].outcome
    dynamic = FakeRig()
    run(study(tmp_path / "dynamic"), dynamic, 12)
    assert len(dynamic.points) == 12


def test_what_cannot_be_fast_enough_is_not_run(tmp_path: Path) -> None:
    goal = parse_goal("best above 2x")
    rig = FakeRig()
    found = run(study(tmp_path), rig, 12, (goal,))
    assert found.failures
    assert all(f.skipped and "2x allows 50.0%" in f.why for f in found.failures)
    assert all(outcome(f.point.values["threshold"]).flops > 0.5 for f in found.failures)
    assert all(outcome(p.values["threshold"]).flops <= 0.5 for p in rig.points[1:])
    whatever = FakeRig()
    run(study(tmp_path / "free"), whatever, 12, (goal, parse_goal("30 dB")))
    assert len(whatever.points) == 12


def test_a_study_with_other_settings_is_refused(tmp_path: Path) -> None:
    study(tmp_path, about={"seed": 0, "model": "embedded"})
    with pytest.raises(StudyDiffers, match="begun with another model: embedded, now other"):
        study(tmp_path, about={"seed": 0, "model": "other"})


def trial(number: int, flops: float, psnr: float, judged: float | None = None) -> Trial:
    return Trial(number, Point("p", {}), Outcome(flops, 0.5, 1.0, 2.0, psnr, psnr, 0.9, judged), None)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_a_damaged_study_is_refused(share: float, tmp_path: Path) -> None:
    """share: of its bytes that are left; with none of them there is nothing to lose."""
    run(study(tmp_path), FakeRig(), 2)
    path = tmp_path / DATABASE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    if not share:
        assert study(tmp_path).trials() == []
        return
    with pytest.raises(StudyUnreadable, match="MC0744"):
        study(tmp_path)
    path.write_bytes(b"no database" * 99)
    with pytest.raises(StudyUnreadable, match="not a database"):
        study(tmp_path)


def test_a_damaged_video_of_vanilla_is_generated_again(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    video = np.zeros((1, 2, 2, 3), np.float32)
    np.savez(path, video=video, seconds=1.0, flops=2.0)
    known = read_reference(path)
    assert known is not None
    assert (known.seconds, known.flops) == (1.0, 2.0)
    whole = path.read_bytes()
    for damaged in (b"", whole[:99], whole[:-30], b"PK" + whole[:50]):
        path.write_bytes(damaged)
        assert read_reference(path) is None
    np.savez(path, video=video + np.nan, seconds=1.0, flops=2.0)
    assert read_reference(path) is None


def test_the_front_and_who_meets_a_goal() -> None:
    trials = [trial(0, 0.5, 30.0), trial(1, 0.25, 28.0), trial(2, 0.6, 29.0), trial(3, 0.7, 40.0), trial(4, 0.25, 27.0)]
    assert [t.number for t in front(trials)] == [1, 0, 3]
    assert [t.number for t in meeting(parse_goal("fastest above 29 dB"), trials)] == [0, 2, 3]
    assert [t.number for t in meeting(parse_goal("best above 2x"), trials)] == [0, 1, 4]
    assert meeting(parse_goal("fastest above judge 1.0"), trials) == []
    judged = [trial(0, 0.5, 30.0, 1.0), trial(1, 0.3, 20.0, 0.5)]
    assert [t.number for t in meeting(parse_goal("fastest above judge 1.0"), judged)] == [0]


@pytest.mark.parametrize(
    ("text", "measure", "least", "slug"),
    [
        ("fastest above 30 dB", "dB", 30.0, "fastest_above_30_db"),
        ("psnr >= 30", "dB", 30.0, "fastest_above_30_db"),
        ("4x", "x", 4.0, "best_above_4x"),
        ("best above 2.5x", "x", 2.5, "best_above_2_5x"),
        ("fastest above judge 1.0", "judge", 1.0, "fastest_above_judge_1"),
    ],
)
def test_goals_in_words(text: str, measure: str, least: float, slug: str) -> None:
    goal = parse_goal(text)
    assert (goal.measure, goal.least, goal.slug) == (measure, least, slug)


@pytest.mark.parametrize("text", ["", "fast", "best above 30 dB", "fastest above 4x", "judge 1 dB", "30 dB or more"])
def test_other_words_are_no_goal(text: str) -> None:
    with pytest.raises(ValueError, match="is no goal"):
        parse_goal(text)


def test_the_space_is_what_a_policy_declares() -> None:
    """Steps go no further than the run; fixed parameters are not searched; whole ones stay whole."""
    (threshold,) = spaces()["motioncache"].ranges["motioncache"]
    assert (threshold.name, threshold.low, threshold.high, threshold.default) == ("threshold", 0.01, 0.5, 0.1)
    points = list(grid(spaces("motioncache", "teacache"), 3))
    assert [p.policy for p in points] == ["motioncache"] * 3 + ["teacache"] * 3


def test_prompts_are_held_out(tmp_path: Path) -> None:
    path, own = tmp_path / "p.txt", tmp_path / "held.txt"
    path.write_text("# prompts\n\n" + "".join(f"prompt {i}\n" for i in range(8)))
    own.write_text("another\n")
    assert read_prompts(path, None).held_out == ("prompt 6", "prompt 7")
    assert read_prompts(path, own).held_out == ("another",)
    assert len(read_prompts(path, own).seen) == 8
    with pytest.raises(PromptsUnusable, match="none is left"):
        read_prompts(own, None)
    with pytest.raises(PromptsUnusable, match="no such file"):
        read_prompts(tmp_path / "none.txt", None)


PAGES = (
    PromptsUnusable("prompts.txt", "it has one prompt, so that none is left to be held out"),
    StudyDiffers("out/explore", "seed", 0, 1),
    StudyUnreadable("out/explore/study.db", "file is not a database"),
    GoalUnmet("best above 9x", "the nearest, trial 7, has 5.10x fewer FLOPs"),
    NotCalibrated("auto", "nothing is stored for embedded, height 96, width 96, on cpu in float32"),
    RayMissing(),
    ClusterFailed("error[MC0705]: `--device cuda` cannot be used here: this torch has no CUDA"),
)


@pytest.mark.parametrize("error", PAGES, ids=lambda error: error.code)
def test_a_page_shows_its_error_as_it_is_printed(error: Exception) -> None:
    assert f"```text\n{error}\n```" in (DOCS / "errors" / f"{error.code}.md").read_text()  # type: ignore[attr-defined]
