"""What a byte budget admits, and which branches of a request are kept: by figures that a prediction gives."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime import budget
from mccompile.runtime.budget import Budget
from mccompile.runtime.clock import ChunkTime, Moment, Timeline, steps_in_order
from mccompile.runtime.errors import OverBudget
from mccompile.runtime.rehearse import KeptBytes
from mccompile.runtime.runner import _left_behind
from mccompile.runtime.store import BranchStore, Window

POLICY = load_policy("teacache")
GRID = Grid(3, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))
MOMENT = Moment("run", 0, "cond", GRID, (ChunkTime(0, "active", 0),), 1)


class Predictor:
    """A branch keeps ten bytes for each token of the call, and needs a hundred more while it runs."""

    asked = 0

    def __init__(self, lowered: object, bound: object) -> None:
        self.cache = ir.Cache("auto", "auto", "auto", None, None, False)

    def store(self, inputs: dict[str, Any], moment: Moment) -> int:
        Predictor.asked += 1
        return int(inputs["latent"].numel()) * len(moment.chunks) * moment.total

    def count(self, store: int, cache: ir.Cache) -> KeptBytes:
        return KeptBytes(10 * store, 0, 0, 0, 0, 0, 100)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Budget:
    """A budget of 300 bytes."""
    monkeypatch.setattr(budget, "Predictor", Predictor)
    Predictor.asked = 0
    lowered: Any = SimpleNamespace(policy=replace(POLICY, cache=replace(POLICY.cache, budget=300)))
    return Budget(lowered, bind(POLICY, {}))


def call(tokens: int) -> dict[str, Any]:
    return {"latent": torch.zeros(tokens), "size": 3}


def admit(limited: Budget, tokens: int, branch: str = "cond", others: tuple[str, ...] = (), **more: Any) -> None:
    limited.admit(call(tokens), replace(MOMENT, branch=branch, **more), others)


def test_a_branch_may_keep_as_much_as_the_budget_and_no_more(limited: Budget) -> None:
    admit(limited, 20)  # 200 bytes, and 100 while it runs
    with pytest.raises(OverBudget, match="may keep 300 bytes, and at this size the guidance branch keeps 310"):
        admit(limited, 21, request="another")


def test_branches_of_a_request_are_counted_together_and_one_of_them_runs(limited: Budget) -> None:
    admit(limited, 10)
    admit(limited, 10, "uncond", ("cond",))
    with pytest.raises(OverBudget, match="the 3 guidance branches keep 400"):
        admit(limited, 10, "third", ("cond", "uncond"))


def test_branches_that_have_no_store_any_more_count_for_nothing(limited: Budget) -> None:
    admit(limited, 20)
    admit(limited, 20, "uncond")
    admit(limited, 20, request="another")
    with pytest.raises(OverBudget):
        admit(limited, 1, "uncond", ("cond",), request="another")


def test_a_size_is_predicted_once(limited: Budget) -> None:
    for _ in range(2):
        for branch in ("cond", "uncond"):
            admit(limited, 5, branch, ("cond", "uncond"))
    assert Predictor.asked == 1
    admit(limited, 6)
    admit(limited, 5, total=2)
    admit(limited, 5, chunks=MOMENT.chunks * 2)
    assert Predictor.asked == 4
    limited.admit({**call(5), "size": 4}, MOMENT, ())
    assert Predictor.asked == 5


def test_a_branch_whose_chunks_lie_behind_is_left() -> None:
    """One of earlier chunks, that took no part in this or the last row of calls."""

    def behind(row: int, *chunks: int, now: int = 5) -> bool:
        store = BranchStore.empty({}, 1, 9)
        store.row, store.window = row, Window(tuple((chunk, False) for chunk in chunks), 4, ())
        times = (ChunkTime(3, "active", 0), ChunkTime(4, "active", 0))
        return _left_behind(store, replace(MOMENT, row=now, chunks=times))

    assert behind(3, 0, 2)
    assert not behind(4, 0, 2)
    assert not behind(5, 0, 2)
    assert not behind(3, 0, 3)
    assert not behind(3, 5, 0)
    assert not _left_behind(BranchStore.empty({}, 1, 9), replace(MOMENT, row=5))


def test_a_clock_that_the_user_sets() -> None:
    rows = (*steps_in_order(GRID, chunks=2)[:2], (ChunkTime(4, "active", 0),))
    clock = Timeline("run", GRID, rows)
    first = clock.moment("cond", {})
    assert first == Moment("run", 0, "cond", GRID, (ChunkTime(0, "active", 0), ChunkTime(1, "active", 0)), 2, rows[1])
    clock.row = 2
    assert (clock.moment("uncond", {}).total, clock.moment("uncond", {}).following) == (5, None)
    clock.row = 3
    with pytest.raises(IndexError):
        clock.moment("cond", {})
    assert [row[0].step for row in steps_in_order(GRID)] == [0, 1, 2]
    assert (ChunkTime(3, "active", 0).original, ChunkTime(3, "active", 0, copy_of=1).original) == (3, 1)
