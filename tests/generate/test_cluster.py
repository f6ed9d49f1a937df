"""Workers of a cluster: work is shared out, a worker that dies costs what it was doing, and its successor knows all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mccompile.cli import main
from mccompile.generate.batch import MadeVideo, Unmade, make_spread, open_folder
from mccompile.generate.cluster import Lost, WorkerDied, Workers
from mccompile.generate.errors import ClusterFailed, OptionRefused


@dataclass
class FakeCluster:
    """Workers in this process. Work is done when its result is asked for; the `dies`-th work kills its worker."""

    dies: frozenset[int] = frozenset()
    given: list[tuple[Any, Callable[..., Any], tuple[object, ...]]] = field(default_factory=list)

    def size(self) -> int:
        return 2

    def begin(self, make: Callable[[], object]) -> Any:
        return make()

    def give(self, worker: Any, work: Callable[..., Any], given: tuple[object, ...]) -> Hashable:
        self.given.append((worker, work, given))
        return len(self.given) - 1

    def first(self, tokens: Sequence[Hashable]) -> Hashable:
        return tokens[-1]  # not the order in which they were given

    def result(self, token: Hashable) -> Any:
        assert isinstance(token, int)
        if token in self.dies:
            raise WorkerDied
        worker, work, given = self.given[token]
        return work(worker, *given)

    def end(self, worker: Any) -> None:
        worker.clear()


def add(state: list[int], value: int) -> int:
    state.append(value)
    return sum(state)


def peek(state: list[int], value: int) -> tuple[list[int], int]:
    return list(state), value


def workers(dies: Sequence[int] = ()) -> Workers[list[int]]:
    return Workers(FakeCluster(frozenset(dies)), 2, list)


def test_every_item_is_done_once() -> None:
    found = {place: result for place, _, result in workers().share(peek, [(n,) for n in range(5)])}
    assert found == {n: ([], n) for n in range(5)}


def test_a_worker_that_dies_costs_one_item_and_its_successor_knows_what_it_was_told() -> None:
    pool = workers(dies=(4,))
    pool.everywhere(add, 7)  # works 0 and 1
    found = {place: (number, result) for place, number, result in pool.share(peek, [(n,) for n in range(6)])}
    lost = [place for place, (_, result) in found.items() if isinstance(result, Lost)]
    assert len(lost) == 1
    assert pool.deaths == 1
    assert all(result == ([7], place) for place, (_, result) in found.items() if place not in lost)
    (number,) = (n for place, (n, _) in found.items() if place in lost)
    assert pool.ask(number, peek, 0) == ([7], 0)


def test_a_question_is_asked_again_until_the_worker_dies_each_time() -> None:
    assert workers(dies=(0,)).ask(0, peek, 3) == ([], 3)
    with pytest.raises(ClusterFailed, match="worker 0 died 3 times"):
        workers(dies=(0, 1, 2)).ask(0, peek, 3)


class Maker(list[int]):
    """Stands for a rig: every video is its prompt's length."""

    def make(self, name: str, prompt: str, seed: int) -> MadeVideo | Unmade:
        video = np.full((1, 1, 1, 3), len(prompt), np.float32)
        return Unmade("refused") if prompt == "bad" else MadeVideo(video, 1.0, 0.5)


def test_a_video_whose_worker_dies_is_made_by_another() -> None:
    wanted = [(f"p_{n}", prompt, 0) for n, prompt in enumerate(("one", "three", "bad", "eleven"))]
    cluster = FakeCluster(frozenset((1,)))
    found = dict(make_spread(Workers(cluster, 2, Maker), wanted))  # type: ignore[arg-type]
    assert sorted(found) == [0, 1, 2, 3]
    assert found[2] == Unmade("refused")
    assert [int(m.video[0, 0, 0, 0]) for n, m in sorted(found.items()) if isinstance(m, MadeVideo)] == [3, 5, 6]
    twice = dict(make_spread(Workers(FakeCluster(frozenset((0, 1))), 1, Maker), wanted[:1]))  # type: ignore[arg-type]
    assert twice == {0: Unmade("its worker died, twice")}


def test_a_folder_belongs_to_one_batch(tmp_path: Path) -> None:
    open_folder(tmp_path, {"seed": 0, "policy": "a"})
    open_folder(tmp_path, {"seed": 0, "policy": "a"})
    with pytest.raises(OptionRefused, match="another seed"):
        open_folder(tmp_path, {"seed": 1, "policy": "a"})
    (tmp_path / "batch.json").write_text("{")
    with pytest.raises(OptionRefused, match="another seed"):
        open_folder(tmp_path, {"seed": 0})


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--engine", "ray"), "`--engine ray` cannot be used"),
        (("--workers", "2", "--seed", "1"), "it shares several videos out"),
        (("--prompts", "none.txt"), "error[MC0705]"),
        (("--policy", "auto:30dB"), "error[MC0745]"),
        (("--policy", "auto:good"), "is no goal"),
        (("--policy", "auto:30dB", "--set", "cell=token"), "no choice open"),
    ],
)
def test_what_a_batch_cannot_do(
    words: tuple[str, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCCOMPILE_CALIBRATED", str(tmp_path / "sets"))
    assert main(["generate", *words]) == 2
    assert says in capsys.readouterr().err
