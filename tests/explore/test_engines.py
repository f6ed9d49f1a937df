"""A search gives the same results here and on a cluster; a worker that dies costs one trial; structure is searched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from mccompile.generate.cluster import Workers
from mccompile.language.load import load_choices, load_policy
from mccompile.studio.explore.engine import Spreading
from mccompile.studio.explore.search import Aim, Found, search
from mccompile.studio.explore.space import Point, Space, grid, ranges_of, variant
from mccompile.studio.explore.study import Sampler, Study
from tests.explore.fakes import FakeRig, spaces, study
from tests.generate.test_cluster import FakeCluster

CHOICES = Path(__file__).parent.parent / "golden" / "ast" / "choices.policy"
STATICS = ("static_2", "static_3")


def aim(trials: int, at_once: int, sampler: Sampler) -> Aim:
    return Aim(("p",), trials, sampler, (), at_once)


def spread(folder: Path, sampler: Sampler, dies: Sequence[int] = (), trials: int = 12) -> Found:
    workers = Workers(FakeCluster(frozenset(dies)), 3, FakeRig)
    return search(study(folder, sampler), Spreading(workers), aim(trials, 3, sampler), lambda trial: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_cluster_finds_what_this_process_finds(sampler: Sampler, tmp_path: Path) -> None:
    here = search(study(tmp_path / "a", sampler), FakeRig(), aim(12, 3, sampler), lambda trial: None)
    assert [t.number for t in here.trials] == list(range(12))
    assert spread(tmp_path / "b", sampler) == here


def test_a_dead_worker_costs_one_trial(tmp_path: Path) -> None:
    found = spread(tmp_path, "random", dies=(1,))  # in the first round, where nothing else is asked
    assert len(found.trials) == 11
    assert len(found.failures) == 1
    assert found.failures[0].why.startswith("its worker died")
    assert not found.failures[0].skipped


def test_points_of_one_round_are_cut_off_together(tmp_path: Path) -> None:
    """Ctrl-C in the second of three points that were begun together: the first is kept, two are asked for again."""
    rig = FakeRig(interrupts=1)
    found = search(study(tmp_path), rig, aim(6, 3, "random"), lambda trial: None)
    assert found.interrupted
    assert len(found.trials) == 1
    again = FakeRig()
    found = search(study(tmp_path), again, aim(6, 1, "random"), lambda trial: None)
    assert again.points[0] == rig.points[1]
    assert len(found.trials) == 6
    assert len({t.point.values["threshold"] for t in found.trials}) == 6


def test_twins_within_a_round_run_once(tmp_path: Path) -> None:
    rig = FakeRig(static=True)
    found = search(study(tmp_path), rig, aim(13, 4, "random"), lambda trial: None)
    plans = {min(int(t.point.values["threshold"] * 10), 2) for t in found.trials}
    assert len(rig.points) <= len(plans) + 3  # nothing is known of the first round
    assert sum(t.twin is None for t in found.trials) == len(rig.points)


def chosen() -> dict[str, Space]:
    """The space of the policy whose choices a golden file shows."""
    choices = load_choices(CHOICES)
    ways = Space(choices, {}).ways()
    ranges = {variant("choices", picks): ranges_of(load_policy(CHOICES, picks), {}, 4) for picks in ways}
    return {"choices": Space(choices, ranges)}


def test_alternatives_are_searched_with_their_own_parameters(tmp_path: Path) -> None:
    rig = FakeRig()
    found = search(Study(tmp_path, chosen(), {}, "random", 0, 3), rig, aim(24, 1, "random"), lambda trial: None)
    first = found.trials[0].point
    assert first.picks == {"cell": "chunk", "measure": "slow", "split": "whole"}
    assert first.variant == "choices[cell=chunk,measure=slow,split=whole]"
    for trial in found.trials:
        assert ("early" in trial.point.values) == (trial.point.picks["split"] == "first")
    assert {t.point.picks["cell"] for t in found.trials} == {"chunk", "token"}
    again = Study(tmp_path, chosen(), {}, "random", 0, 3)
    assert again.trials() == list(found.trials)


def test_a_grid_has_every_alternative() -> None:
    points = list(grid(chosen(), 2))
    whole, first = ([p for p in points if p.picks["split"] == word] for word in ("whole", "first"))
    assert (len(whole), len(first)) == (4 * 2, 4 * 2 * 2)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_static_schedules_are_measured_once(sampler: Sampler, tmp_path: Path) -> None:
    def opened() -> Study:
        return Study(tmp_path, spaces(), {}, sampler, 0, 5, STATICS)

    class WithStatics(FakeRig):
        def run(self, point: Point, prompts: Sequence[str]):  # type: ignore[no-untyped-def]
            return super().run(Point(point.policy, {"threshold": 0.2, **point.values}), prompts)

        def plans(self, point: Point) -> None:
            return None

    found = search(opened(), WithStatics(), aim(9, 1, sampler), lambda trial: None)
    named = [t.point.policy for t in found.trials]
    assert sorted(n for n in named if n in STATICS) == list(STATICS)
    assert search(opened(), WithStatics(), aim(12, 1, sampler), lambda trial: None).trials[: len(named)] == found.trials
    again = search(opened(), WithStatics(interrupts=0), aim(13, 1, sampler), lambda trial: None)
    assert [t.point.policy for t in again.trials].count("static_2") == 1
