"""An integration step that is taken over: computed tokens move by their velocity, the others repeat their last move."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mccompile.capture.types import TokenGrid
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.increments import Increments, check_integrates
from mccompile.runtime.store import BranchStore, Window

POLICY = load_policy("teacache")


@dataclass
class Call:
    active_chunks: tuple[int, ...]
    finished_chunk: int | None = None


class Pipe:
    """A step of it adds the velocity times the time."""

    def __init__(self) -> None:
        self.current_call: Call | None = None
        self.guidance_passes: tuple[str, ...] = ("cond",)

    def integrate(self, latents: torch.Tensor, velocity: torch.Tensor, time: float, next_time: float) -> torch.Tensor:
        return latents + velocity * (next_time - time)


class Clock:
    def request(self) -> str:
        return "run"


def taken_over() -> tuple[Pipe, Increments, BranchStore]:
    """Chunks 4 and 5 of a video are in a call, each of two frames of 1 x 2 tokens of 2 x 2 x 2 cells."""
    store = BranchStore.empty({"": bind(POLICY, {})}, 1, 6)
    store.window = Window(((4, False), (5, False), (5, True)), 4, ())
    grid = TokenGrid("latent", (2, 3, 4), (2, 2, 2))
    lowered = SimpleNamespace(policy=POLICY, captured=SimpleNamespace(grid=grid))
    runner: Any = SimpleNamespace(lowered=lowered, requests={"run": SimpleNamespace(branches={"cond": store})})
    pipe = Pipe()
    return pipe, Increments.attach(pipe, runner, Clock()), store


def step(pipe: Pipe, velocity: float, latents: float = 0.0) -> list[list[float]]:
    """The cells of one step of a chunk, frame of tokens by frame, in their first row."""
    value = torch.full((1, 1, 4, 2, 4), latents)
    found = pipe.integrate(value, torch.full_like(value, velocity), 1.0, 3.0)
    assert torch.equal(found[..., 0, :], found[..., 1, :])
    assert torch.equal(found[:, :, ::2], found[:, :, 1::2])
    rows: list[list[float]] = found[0, 0, ::2, 0].tolist()
    return rows


def select(store: BranchStore, *chunks: list[list[bool]]) -> None:
    store.course.states.selection = np.array([[*chunks, [[True] * 2] * 2]])


ALL, SOME, NONE = [[True, True]] * 2, [[True, False], [False, True]], [[False, False]] * 2


def test_tokens_that_were_not_computed_repeat_their_last_move() -> None:
    pipe, _, store = taken_over()
    pipe.current_call = Call((4, 5))
    select(store, ALL, ALL)
    assert step(pipe, 1.0, 1.0) == [[3.0] * 4] * 2
    assert step(pipe, 10.0, 1.0) == [[21.0] * 4] * 2
    pipe.current_call = Call((4, 5))
    select(store, SOME, NONE)
    assert step(pipe, 5.0, 1.0) == [[11, 11, 3, 3], [3, 3, 11, 11]]
    assert step(pipe, 7.0, 1.0) == [[21.0] * 4] * 2
    pipe.current_call = Call((5,))
    select(store, ALL, SOME)
    assert step(pipe, 2.0, 1.0) == [[5, 5, 21, 21], [21, 21, 5, 5]]
    pipe.current_call = Call((5,))
    select(store, ALL, NONE)
    assert step(pipe, 9.0) == [[4, 4, 20, 20], [20, 20, 4, 4]]


def test_chunks_of_a_call_come_in_order() -> None:
    pipe, _, store = taken_over()
    store.window, pipe.current_call = Window(((3, False), (4, False), (5, False), (5, True)), 4, ()), Call((3, 4, 5))
    select(store, ALL, ALL, ALL)
    for velocity in (1.0, 2.0, 3.0):
        step(pipe, velocity)
    assert {chunk: float(moved.max()) for chunk, moved in store.memory.increments.items()} == {3: 2, 4: 4, 5: 6}


def test_what_moved_a_chunk_is_forgotten_after_its_last_step() -> None:
    pipe, _, store = taken_over()
    for finished, known in ((None, {4, 5}), (5, {4, 5}), (4, {5})):
        pipe.current_call = Call((4, 5), finished)
        select(store, ALL, ALL)
        for _ in range(2):
            step(pipe, 1.0)
        if finished == 5:
            assert store.memory.increments.keys() == {4}
            store.memory.increments[5] = torch.zeros(1, 1, 4, 2, 4)
        assert store.memory.increments.keys() == known


def test_the_pipeline_gets_its_own_step_back() -> None:
    pipe, made, _ = taken_over()
    assert pipe.integrate == made.integrate
    made.detach()
    assert "integrate" not in vars(pipe)


def test_steps_that_cannot_be_taken_over_are_refused() -> None:
    pipe = Pipe()
    check_integrates(pipe, POLICY, Clock())
    for odd, clock in ((SimpleNamespace(), Clock()), (pipe, object())):
        with pytest.raises(NoIncrement, match="it has no `integrate` that is called chunk by chunk"):
            check_integrates(odd, POLICY, clock)
    pipe.guidance_passes = ("cond", "uncond")
    with pytest.raises(NoIncrement, match="its velocity is made of cond, uncond passes"):
        check_integrates(pipe, POLICY, Clock())
    pipe, _, store = taken_over()
    pipe.current_call, pipe.guidance_passes = Call((4,)), ("cond", "uncond")
    select(store, ALL, ALL)
    with pytest.raises(NoIncrement, match="passes with caches of their own"):
        step(pipe, 1.0)
