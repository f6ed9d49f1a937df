"""What a branch keeps of its chunks: the steps that computed a token, what is lost and why, inputs that are held."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.lowering.slots import Count, SourceBefore
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import Grid
from mccompile.policy.phases import advance, start
from mccompile.runtime.clock import ChunkTime
from mccompile.runtime.forecast import Weighing
from mccompile.runtime.snapshot import StoredTensor, _laid
from mccompile.runtime.store import BranchStore, Held, History, Made, Memory, Once, Recent, States

STEPS = 8
GRID = Grid(STEPS, tuple(900.0 - 100 * i for i in range(STEPS)), tuple(0.9 - 0.1 * i for i in range(STEPS)))
TEACACHE = bind(load_policy("teacache"), {"warmup": 2})
FORESEES = bind(load_policy("taylorseer"), {})  # it reads the last steps that computed a token
ALL, NONE, SOME = (np.array([[a, b]]) for a, b in ((True, True), (False, False), (True, False)))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=7), st.integers(1, 3))
def test_the_last_steps_that_computed_each_token(masks: list[list[bool]], kept: int) -> None:
    found = Recent(np.full((kept, 1, 3), -1))
    for step, mask in enumerate(masks):
        found = found.after(step, np.array([mask]))
    for token in range(3):
        steps = [step for step, mask in enumerate(masks) if mask[token]][::-1]
        assert found.steps[:, 0, token].tolist() == [*steps, *[-1] * kept][:kept]


def test_each_token_is_weighed_by_the_steps_that_computed_it() -> None:
    """With the weights of as many computations as it has had; one that has had none, by what was kept last."""
    weights = ((ir.Const(1.0),), (ir.Const(2.0), ir.Const(-1.0)))
    weighing = Weighing(ir.Forecast(weights), TEACACHE, GRID, 3)
    recent = Recent(np.array([[[-1, 3, 4]], [[-1, -1, 2]], [[-1, -1, 1]]]))
    found = weighing.of_chunk(5, recent, {})
    assert found.tolist() == [[[1.0, 1.0, 2.0]], [[0.0, 0.0, -1.0]], [[0.0, 0.0, 0.0]]]
    alike = weighing.of_chunk(5, Recent(np.broadcast_to(recent.steps[:, :, 2:], (3, 1, 4))), {})
    assert alike.tolist() == [[[2.0]], [[-1.0]], [[0.0]]]
    assert weighing.of_chunk(0, None, {}).tolist() == [[[1.0]], [[0.0]], [[0.0]]]
    passing = replace(weighing, forecast=ir.Forecast(weights, ((ir.Const(0.5),),)))
    assert passing.of_chunk(5, recent, {})[:, 0, 2].tolist() == [2.0, -1.0, 0.0, 0.5]


def test_accounts_are_cleared_and_nothing_else() -> None:
    slots = {
        Count("account"): 0.0, Count("account", "debt"): 0.0, Count("total"): 1.0, SourceBefore("latent", "step"): 1.0,
    }  # fmt: skip
    states = States({slot: torch.ones(2) for slot in slots})
    states.clear_accounts()
    assert {slot: float(tensor.sum()) / 2 for slot, tensor in states.tensors.items()} == slots
    assert states.nbytes() == 4 * 8


def test_what_is_computed_of_a_chunk_is_noted() -> None:
    history = History.empty(TEACACHE, 2, 3)
    for step, mask in enumerate((ALL, SOME, ALL, NONE, NONE)):
        history.note(1, ChunkTime(2, "active", step), TEACACHE, GRID, mask)
    found = history.chunk(1, 2)
    assert (found.computed, found.cleaned, found.since, found.planned, found.lost) == (True, False, 2, True, "")
    state = start(TEACACHE)
    for computed in (True, True, True, False, False):
        state = advance(TEACACHE, state, GRID, computed)
    assert found.state == state
    assert history.chunk(0, 2) == History.empty(TEACACHE, 2, 3).chunk(0, 2)
    assert not history.chunk(1, 1).computed


@pytest.mark.parametrize(
    ("state", "clean", "mask", "cleaned"),
    [("finished", True, ALL, True), ("finished", False, ALL, False), ("active", True, ALL, False),
     ("finished", True, SOME, False)],
)  # fmt: skip
def test_a_chunk_is_clean_once_all_of_it_was_computed_on_its_final_input(
    state: str, clean: bool, mask: np.ndarray, cleaned: bool
) -> None:
    history = History.empty(TEACACHE, 1, 1)
    history.note(0, ChunkTime(0, state, 0, clean=clean), TEACACHE, GRID, mask)  # type: ignore[arg-type]
    assert history.chunk(0, 0).cleaned == cleaned
    assert history.chunk(0, 0).state.step == int(state == "active")
    history.note(0, ChunkTime(0, "finished", 0), TEACACHE, GRID, NONE)
    assert history.chunk(0, 0).cleaned == cleaned


def test_a_copy_is_noted_by_itself() -> None:
    history = History.empty(FORESEES, 1, 2)
    copy = ChunkTime(2, "active", 0, copy_of=1)
    history.note(0, copy, FORESEES, GRID, SOME)
    assert history.copies == set()
    history.note(0, copy, FORESEES, GRID, ALL)
    assert history.copies == {(0, 1)}
    assert not history.chunk(0, 1).computed
    history.note(0, ChunkTime(1, "active", 0), FORESEES, GRID, ALL)
    history.note(0, ChunkTime(1, "active", 1), FORESEES, GRID, SOME)
    history.note(0, replace(copy, step=1), FORESEES, GRID, ALL)
    one, two = history.recent_of(0, ChunkTime(1, "active", 2)), history.recent_of(0, replace(copy, step=2))
    assert one is not None
    assert two is not None
    assert one.steps[:2, 0].tolist() == [[1, 0], [0, -1]]
    assert two.steps[:2, 0].tolist() == [[1, 1], [0, 0]]
    assert history.recent_of(0, ChunkTime(0, "active", 0)) is None


def test_steps_are_noted_only_where_a_forecast_reads_them() -> None:
    for bound, state, noted in ((TEACACHE, "active", False), (FORESEES, "finished", False), (FORESEES, "active", True)):
        history = History.empty(bound, 1, 1)
        history.note(0, ChunkTime(0, state, 0), bound, GRID, ALL)  # type: ignore[arg-type]
        assert bool(history.recent) is noted


def test_steps_of_what_was_lost_are_forgotten() -> None:
    history = History.empty(FORESEES, 1, 2)
    time = ChunkTime(0, "active", 0)
    for step, lost, expected in ((0, False, [[0, 0], [-1, -1]]), (1, False, [[1, 0], [0, -1]]),
                                 (2, True, [[2, -1], [-1, -1]])):  # fmt: skip
        if lost:
            history.lose("another prompt")
        history.note(0, replace(time, step=step), FORESEES, GRID, ALL if step == 0 else SOME)
        found = history.recent_of(0, time)
        assert found is not None
        assert found.steps[:2, 0].tolist() == expected


def test_steps_that_were_left_out_are_followed_and_told() -> None:
    history = History.empty(TEACACHE, 1, 3)
    history.note(0, ChunkTime(1, "active", 0), TEACACHE, GRID, ALL)
    for chunk, step in ((0, 3), (1, 4), (2, 0)):
        history.follow(ChunkTime(chunk, "active", step), TEACACHE, GRID)
    late, gap, fresh = (history.chunk(0, chunk) for chunk in range(3))
    assert (late.lost, gap.lost, fresh.lost) == ("first called at step 3", "1 steps before step 4", "")
    assert [c.state.step for c in (late, gap, fresh)] == [3, 4, 0]
    assert [c.planned for c in (late, gap, fresh)] == [False, False, True]
    assert not gap.computed
    state = advance(TEACACHE, start(TEACACHE), GRID, True)
    for _ in range(3):
        state = advance(TEACACHE, state, GRID, False)
    assert gap.state == state
    history.follow(ChunkTime(1, "active", 2), TEACACHE, GRID)  # back: counted from the start again
    assert history.chunk(0, 1).state == advance(TEACACHE, advance(TEACACHE, start(TEACACHE), GRID, False), GRID, False)
    assert history.chunk(0, 1).lost == "1 steps before step 4"


def test_each_sample_is_followed_by_itself() -> None:
    """One that is at its step already stays as it is, and the next one is brought there."""
    history = History.empty(TEACACHE, 2, 1)
    history.note(0, ChunkTime(0, "active", 0), TEACACHE, GRID, ALL)
    history.cleaned[:], history.computed[1] = True, True
    history.follow(ChunkTime(0, "active", 1), TEACACHE, GRID)
    one, two = history.chunk(0, 0), history.chunk(1, 0)
    assert (one.state.step, one.computed, one.cleaned, one.lost) == (1, True, True, "")
    assert (two.state.step, two.computed, two.cleaned, two.lost) == (1, False, False, "first called at step 1")


@pytest.mark.parametrize("but_clean", [False, True])
def test_what_is_lost_says_why(but_clean: bool) -> None:
    store = BranchStore.empty({"": TEACACHE}, 1, 3)
    history = store.course.history
    history.note(0, ChunkTime(0, "finished", 0, clean=True), TEACACHE, GRID, ALL)
    history.note(0, ChunkTime(1, "active", 0), TEACACHE, GRID, ALL)
    history.note(0, ChunkTime(3, "active", 0, copy_of=1), TEACACHE, GRID, ALL)
    store.lose("another prompt", but_clean)
    clean, active, new = (history.chunk(0, chunk) for chunk in range(3))
    lost = "" if but_clean else "another prompt"
    assert (clean.computed, clean.cleaned, clean.lost) == (but_clean, but_clean, lost)
    assert (active.computed, active.planned, active.lost) == (False, False, "another prompt")
    assert (new.planned, new.lost) == (but_clean, lost)
    assert history.copies == set()
    history.note(0, ChunkTime(1, "active", 1), TEACACHE, GRID, ALL)
    assert history.chunk(0, 1).lost == ""


def test_what_is_dropped_is_freed() -> None:
    store = BranchStore.empty({"": TEACACHE}, 1, 1)
    store.memory = Memory(buffers={0: (torch.ones(2),)}, kept={(0, "x"): torch.ones(3)}, outputs=torch.ones(1))
    store.course.states.tensors[Count("account")] = torch.ones(4)
    assert store.nbytes() == 4 * (2 + 3 + 1 + 4)
    store.drop("weights changed")
    assert store.nbytes() == 0
    assert store.course.history.chunk(0, 0).lost == "weights changed"
    assert store.is_finite()


@pytest.mark.parametrize(
    ("shape", "stride", "fits"),
    [
        ((2, 3), (3, 1), True), ((2, 3), (1, 2), True), ((2, 3), (12, 4), True), ((1, 3), (0, 1), True), ((), (), True),
        ((0, 3), (3, 1), True), ((2, 3), (12, 7), False), ((2, 3), (-3, 1), False), ((2, 3), (0, 1), False),
        ((3, 2), (2, 1), False),
    ],
)  # fmt: skip
def test_a_stored_tensor_lies_as_it_did_unless_it_cannot(
    shape: tuple[int, ...], stride: tuple[int, ...], fits: bool
) -> None:
    """At most four times its size, and no two of its elements in one place."""
    size = (2, 3) if shape == (3, 2) else shape
    tensor = torch.arange(6.0)[: math.prod(size)].reshape(size)
    lying = StoredTensor(("kept", "0", "x"), shape, stride, host=True)
    with nullcontext() if fits else pytest.raises(ValueError, match="lies as"):
        found = _laid(tensor, lying, torch.device("cpu"), None)
        assert found.stride() == stride
        assert torch.equal(found, tensor)


def test_all_memory_is_counted() -> None:
    def of(number: int) -> torch.Tensor:
        return torch.ones(number)

    memory = Memory(
        buffers={0: (of(1), of(2))}, once={0: Once((), (of(4),))}, apart={(0, 0): Once((), (of(8),))},
        kept={(0, "x"): of(16)}, older={(0, "x"): (of(32),)}, passed={(0, "x"): (of(64),)}, merged={(0, "x"): of(128)},
        increments={0: of(256)}, outputs=of(512),
    )  # fmt: skip
    assert memory.nbytes() == 4 * 1023
    assert replace(memory, outputs=None).nbytes() == 4 * 511


def test_inputs_that_are_held() -> None:
    value = torch.ones(2)
    one, other, apart = Held.of(value), Held.of(value), Held.of(torch.ones(2))
    assert one.same(other)
    assert one.same(apart)
    assert not one.same(Held.of(torch.zeros(2)))
    assert not one.same(Held.of(torch.ones(2, dtype=torch.float64)))
    assert not one.same(Held.of(torch.ones(1)))
    value.add_(0)
    assert one.changed()
    assert not apart.changed()
    assert not one.same(apart)
    assert not apart.same(one)
    with torch.inference_mode():
        inferred = torch.ones(2)
        held = Held.of(inferred)
        inferred.zero_()
    assert not held.changed()
    assert held.same(apart)


def test_a_prompt_is_the_same_with_the_same_inputs_of_the_same_names() -> None:
    one, zero = Held.of(torch.ones(2)), Held.of(torch.zeros(2))
    made = Made((1,), {"a": one, "b": zero})
    assert made.same_prompt(Made((2,), {"a": one, "b": Held.of(torch.zeros(2))}))
    assert not made.same_prompt(Made((1,), {"a": one, "b": one}))
    assert not made.same_prompt(Made((1,), {"a": one}))
    assert not Made((1,), {"a": one}).same_prompt(made)


def test_what_was_made_of_values_is_made_of_these_very_ones() -> None:
    one, two = torch.ones(1), torch.ones(1)
    once = Once((one, 3), (two,))
    assert once.made_of([one, 3])
    assert not once.made_of([two, 3])
    assert not once.made_of([one])
