"""A real Ray on this machine: two workers, one of them killed while it works."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mccompile.generate.cluster import Lost, Workers, ray_cluster


class Counter:
    """What a worker holds."""

    def __init__(self) -> None:
        self.added = 0


def add(state: Counter, value: int) -> int:
    state.added += value
    return state.added


def square(state: Counter, value: int, killer: str) -> tuple[int, int]:
    """The square; the worker that does 3 for the first time is killed by the machine, so to speak."""
    if value == 3 and not Path(killer).exists():
        Path(killer).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return state.added, value * value


@pytest.fixture
def ray_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.slow  # tests/generate/test_cluster.py has the same with a cluster of its own
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.usefixtures("ray_of_two")
def test_a_killed_worker_costs_what_it_was_doing(tmp_path: Path) -> None:
    cluster = ray_cluster("cpu")
    assert cluster.size() == 2
    workers = Workers(cluster, 2, Counter)
    workers.everywhere(add, 5)
    items = [(n, str(tmp_path / "killed")) for n in range(8)]
    found = {place: result for place, _, result in workers.share(square, items)}
    assert isinstance(found.pop(3), Lost)
    assert found == {n: (5, n * n) for n in range(8) if n != 3}
    assert workers.deaths == 1
    assert [workers.ask(n, square, 3, str(tmp_path / "killed")) for n in range(2)] == [(5, 9)] * 2
    workers.close()
