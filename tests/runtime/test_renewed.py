"""What a store keeps for the next call: nothing of another size, another prompt, another row, or no number."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.types import Along, Beside, Port, TokenGrid
from mccompile.language.load import load_policy
from mccompile.lowering.slots import Count
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.finite import OnItsWay
from mccompile.runtime.fresh import forget_odd, made_of, prompt_inputs, renew
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import BranchStore, Held, Made

BOUND = bind(load_policy("teacache"), {})
BOUNDS = {"": BOUND, "rear": BOUND}
GRID = Grid(9, tuple(900.0 - 100 * i for i in range(9)), tuple(0.9 - 0.1 * i for i in range(9)))
TIMES = ChunkTime(0, "active", 3), ChunkTime(1, "active", 2)
MOMENT = Moment("run", 3, "cond", GRID, TIMES, 2)
TEXT = torch.ones(2)
MADE = Made((1, 2, 3), {"text": Held.of(TEXT)})


def store(row: int = 2) -> BranchStore:
    """Of two chunks, the second one a step behind; what it keeps of the first is of its final input."""
    made = BranchStore.empty(BOUNDS, 1, 2)
    made.row, made.made = row, MADE
    made.memory.kept[0, "x"] = torch.ones(1)
    for course in made.courses.values():
        course.states.tensors[Count("account")] = torch.ones(1)
        course.history.computed[:], course.history.cleaned[0, 0] = True, True
        for chunk, steps in enumerate((3, 2)):
            state = course.history.phases[0][chunk]
            course.history.phases[0][chunk] = replace(state, step=steps)
    return made


def kept(of: BranchStore) -> list[list[bool]]:
    return [course.history.computed[0].tolist() for course in of.courses.values()]


def lost(of: BranchStore) -> set[str]:
    return {course.history.chunk(0, chunk).lost for course in of.courses.values() for chunk in (0, 1)}


def test_a_store_of_this_very_call_stays_as_it_is() -> None:
    for before in (MADE, None):
        made = store()
        made.made = before
        found = renew(made, MADE, MOMENT, BOUNDS)
        assert found is made
        assert (kept(found), lost(found), found.made) == ([[True, True]] * 2, {""}, MADE)
    first = BranchStore.empty(BOUNDS, 1, 2)  # it was never called
    assert renew(first, MADE, replace(MOMENT, row=0, chunks=(ChunkTime(0, "active", 0),)), BOUNDS) is first
    assert lost(first) == {""}


def test_another_size_begins_with_an_empty_store() -> None:
    other = replace(MADE, size=(2, 5, 3))
    found = renew(store(), other, replace(MOMENT, total=4), BOUNDS)
    assert not found.memory.kept
    assert [course.history.computed.shape for course in found.courses.values()] == [(2, 4)] * 2
    assert (lost(found), found.made) == ({"another size"}, other)
    assert [course.history.chunk(0, 0).state.step for course in found.courses.values()] == [3, 3]


def test_another_prompt_leaves_nothing_that_was_made_of_the_first() -> None:
    found = renew(store(), replace(MADE, prompt={"text": Held.of(torch.zeros(2))}), MOMENT, BOUNDS)
    assert not found.memory.kept
    assert (kept(found), lost(found)) == ([[False, False]] * 2, {"another prompt"})
    assert found.courses[""].states.tensors  # accounts go on


@pytest.mark.parametrize("row", [0, 1, 3, 4])
def test_after_another_row_only_what_is_final_is_kept(row: int) -> None:
    found = renew(store(row), MADE, MOMENT, BOUNDS)
    assert found.memory.kept
    assert (kept(found), lost(found)) == ([[True, False]] * 2, {"", f"last called in row {row}"})


def test_every_group_follows_the_chunks_at_their_own_steps() -> None:
    times = (ChunkTime(0, "finished", 0), ChunkTime(1, "active", 5), ChunkTime(2, "active", 7, copy_of=0))
    found = renew(store(), MADE, replace(MOMENT, chunks=times), BOUNDS)
    for course in found.courses.values():
        assert [course.history.chunk(0, chunk).state.step for chunk in (0, 1)] == [3, 5]
        assert course.history.chunk(0, 1).lost == "2 steps before step 5"


FULL, REUSE = Action("compute", 0, None, ""), Action("reuse", 0, None, "")


def test_results_that_are_no_numbers_are_dropped_where_they_would_be_used() -> None:
    for odd, actions, dropped in (
        (True, (((FULL, REUSE),),), True), (True, (((FULL, FULL),), ((FULL, REUSE),)), True),
        (True, (((FULL, FULL),),), False), (False, (((REUSE, REUSE),),), False),
    ):  # fmt: skip
        made = store()
        made.finite = OnItsWay((torch.tensor(not odd),), None)
        assert forget_odd(made, actions) is dropped
        assert bool(made.memory.kept) is not dropped
        assert lost(made) == ({"the last result was not finite"} if dropped else {""})


def captured(grid: bool = True) -> Any:
    streams = (
        Port("x", 1, "video", frozenset({"latent", "timestep", "image"}), Along(0), Beside(0, 0)),
        Port("control", 1, "video", frozenset({"control"}), Along(0)),
        Port("words", 1, "7", frozenset({"text", "timestep"}), Along(0)), Port("later", 1, "7", frozenset({"mask"})),
    )  # fmt: skip
    shared = (
        Port("style", None, "", frozenset({"style"})), Port("time", None, "", frozenset({"timestep", "scale"})),
        Port("places", 1, "video", frozenset({"places"})), Port("size", None, "", frozenset()),
    )  # fmt: skip
    return SimpleNamespace(
        inputs=("style", "latent", "image", "text", "timestep", "scale", "places", "mask", "control"), streams=streams,
        shared=shared, entry=("x", "words", "control"), moving=(), sources=(),
        grid=TokenGrid("latent", (2, 3, 4), (1, 2, 2)) if grid else None,
    )  # fmt: skip


def test_the_prompt_is_what_neither_latents_nor_timestep_reach() -> None:
    """By what is made of it: entry streams of other rows, and shared values without tokens."""
    assert prompt_inputs(captured()) == ("style", "text")


def test_kept_tensors_are_made_of_a_size_and_of_the_prompt() -> None:
    latent = torch.zeros(2, 4, 6, 8, 10)
    inputs = {"latent": latent, "text": TEXT, "style": 3}
    found = made_of(captured(), ("style", "text"), Layout(2, 3, frames=2, positions=20, rows=4), inputs)
    assert found.size == (2, 2, 4, 5)
    assert found.prompt.keys() == {"text"}
    assert found.prompt["text"].value is TEXT
    behind = made_of(captured(), (), Layout(2, 3, 2, 20, 4, behind=7), inputs)
    assert behind == Made((2, 2, 4, 5, 7), {})
    assert made_of(captured(grid=False), (), Layout(2, 3, 2, 20), inputs).size == (2, 2, 20)
