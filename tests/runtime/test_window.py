"""A window of chunks that moves: what is kept of a chunk follows it to its new place, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.types import BufferSpec, Port
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.errors import WindowMoved
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import BranchStore, Window
from mccompile.runtime.window import leading_key_values, move_window, window_of

BOUND = bind(load_policy("teacache"), {})
TOKENS = 2  # of a chunk
BEFORE = Window(((1, False), (2, False), (2, True)), TOKENS, ("before",))
NOW = Window(((2, False), (3, False), (2, True), (1, True)), TOKENS, ("now",))


def numbered(window: Window, front: int = 0, axis: int = 1, behind: int = 0) -> torch.Tensor:
    """Rows 10 c + 1, 10 c + 2 for chunk c, negative for a copy; 0 for other rows. Channels are twice that."""
    rows = [0.0] * front
    for chunk, copy in window.places:
        rows += [(-1.0 if copy else 1.0) * (10 * chunk + token) for token in range(1, window.tokens + 1)]
    rows += [0.0] * behind
    return torch.stack([torch.tensor([rows]), 2 * torch.tensor([rows])], 2).movedim(1, axis)


class Blocks:
    """What `move_window` asks of the blocks of a model: empty buffers at the sizes of the call."""

    def __init__(self, front: int) -> None:
        self.front, self.settled = front, 0

    def new_buffers(self, block: int, env: object, shared: object) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(1, self.front + TOKENS * len(NOW.places), 2),)

    def settle(self) -> None:
        self.settled += 1

    def given_out(self, buffer: torch.Tensor, kind: int) -> torch.Tensor:
        return buffer


def model(rows: str = "3|5+video", kinds: int = 1) -> Any:
    spec = BufferSpec("k", 1, rows)
    ports = (
        Port("x", 1, "video", frozenset()), Port("text", 1, "7", frozenset()), Port("late", 0, "video", frozenset()),
        Port("time", None, "", frozenset()),
    )  # fmt: skip
    site = SimpleNamespace(kind=0, index=0)
    return SimpleNamespace(kinds=[SimpleNamespace(buffers=(spec,))] * kinds, blocks=[site], streams=ports)


def store() -> BranchStore:
    made = BranchStore.empty({"": BOUND}, 1, 5)
    made.window = BEFORE
    made.memory.buffers[0] = (numbered(BEFORE, front=3),)
    made.course.history.computed[:], made.course.history.cleaned[:] = True, True
    made.course.history.copies = {(0, 2), (0, 4)}
    made.course.states.ahead = object()  # type: ignore[assignment]
    return made


def moved(made: BranchStore, now: Window = NOW, rows: str = "3|5+video") -> BranchStore:
    move_window(made, now, model(rows), Blocks(front=3), {}, {})  # type: ignore[arg-type]
    return made


def carried(front: int = 0, axis: int = 1) -> torch.Tensor:
    """Chunk 2 and its copy were in the window before; chunk 3 was not, and of chunk 1 no copy was."""
    found = numbered(NOW, front, axis)
    return torch.where((found.abs() // 10 % 2 == 1) | (found.abs() // 2 // 10 % 2 == 1), 0.0, found)


def test_rows_of_chunks_that_stay_follow_them() -> None:
    made = store()
    for key, axis in (((0, "x"), 1), ((0, "late"), 0)):
        made.memory.kept[key] = numbered(BEFORE, axis=axis)
        made.memory.older[key] = (2 * numbered(BEFORE, axis=axis), 3 * numbered(BEFORE, axis=axis))
        made.memory.passed[key] = (4 * numbered(BEFORE, axis=axis),)
    made.memory.kept[1, "x"], made.memory.kept[2, "x"] = numbered(BEFORE), numbered(BEFORE)
    made.memory.older[2, "x"] = (2 * numbered(BEFORE),)
    made.memory.kept[0, "text"] = text = torch.ones(1, 7)
    made.memory.kept[0, "time"] = time = torch.ones(1, 2)
    made.memory.passed[0, "text"] = (text,)
    made.memory.passed[0, "time"] = (time,)
    moved(made)
    expected = torch.zeros(1, 3 + 8, 2)
    expected[0, 3:5] = torch.tensor([[21.0, 42], [22, 44]])
    expected[0, 7:9] = -expected[0, 3:5]
    assert torch.equal(made.memory.buffers[0][0], expected)
    for key, axis in (((0, "x"), 1), ((0, "late"), 0)):
        rows = expected[:, 3:].movedim(1, axis)
        for times, found in enumerate((made.memory.kept[key], *made.memory.older[key], *made.memory.passed[key]), 1):
            assert torch.equal(found, times * rows)
    assert torch.equal(made.memory.older[2, "x"][0], 2 * expected[:, 3:])
    assert (1, "x") not in made.memory.older
    assert made.memory.kept[0, "text"] is text
    assert made.memory.kept[0, "time"] is time
    assert (made.memory.passed[0, "text"], made.memory.passed[0, "time"]) == ((text,), (time,))
    assert not made.memory.older.keys() & {(0, "text"), (0, "time")}
    assert made.window == NOW


def test_what_left_the_window_is_forgotten_and_what_stays_is_not() -> None:
    made = moved(store())
    assert made.course.states.ahead is None
    assert made.course.history.computed.tolist() == [[True, False, True, True, True]]
    assert made.course.history.cleaned.tolist() == [[True, False, True, True, True]]
    assert made.course.history.copies == {(0, 2), (0, 4)}
    without = Window(((2, False), (3, False), (4, False), (1, False)), TOKENS, ())
    assert moved(store(), without).course.history.copies == {(0, 4)}


def test_keys_that_were_picked_in_another_window_are_dropped_with_all_else() -> None:
    """They count the rows of the window before."""
    made = store()
    made.memory.chosen[0] = (torch.zeros(1, 2),)
    moved(made)
    assert not made.memory.chosen
    assert not made.memory.buffers
    assert made.course.history.chunk(0, 2).lost == "keys were picked in another window"


def test_the_same_window_and_the_first_one_move_nothing() -> None:
    for before in (None, NOW):
        made = store()
        made.window, buffers = before, made.memory.buffers[0]
        moved(made)
        assert made.memory.buffers[0] is buffers
        assert made.window == NOW
        assert made.course.states.ahead is not None
        assert made.course.history.computed.all()


@pytest.mark.parametrize("rows", ["video", "3|5+video", "video+7", "7", "video+video", "1+video+2"])
def test_the_calls_tokens_must_lie_in_one_piece_at_an_end(rows: str) -> None:
    """Where they lie first, they begin at row 0; where they lie last, at the end less all of them."""
    made, front = store(), int(rows == "3|5+video") * 3
    made.memory.buffers[0] = (numbered(BEFORE, front, behind=3 - front),)
    if rows not in ("video", "3|5+video", "video+7"):
        with pytest.raises(WindowMoved, match=rf"`k` does not hold their tokens .*its rows: {re.escape(rows)}\)"):
            moved(made, rows=rows)
        return
    found = moved(made, rows=rows).memory.buffers[0][0]
    assert found[0, front : front + 2, 0].tolist() == [21.0, 22.0]
    assert found[0, front + 2 : front + 4].abs().sum() == 0


def test_keys_and_values_of_the_first_chunks_are_given_out_as_copies() -> None:
    made = store()
    kept, captured = made.memory.buffers[0][0], model()
    captured.blocks.append(SimpleNamespace(kind=1, index=1))  # it attends to no tokens
    captured.kinds.append(SimpleNamespace(buffers=()))
    blocks = Blocks(front=3)
    (block,) = leading_key_values(made, captured, 2, blocks)  # type: ignore[arg-type]
    assert blocks.settled == 1  # else the host would read what is still on its way
    assert torch.equal(block[0], kept[:, 3:7])
    block[0].zero_()
    assert kept[0, 3, 0] == 11.0


def test_a_window_says_which_rows_a_call_has() -> None:
    times = (ChunkTime(1, "active", 2), ChunkTime(2, "active", 0), ChunkTime(3, "active", 2, copy_of=1))
    moment = Moment("run", 0, "cond", Grid(1, (0.0,), (0.0,)), times, 4)
    inputs: Mapping[str, torch.Tensor | int] = {"latent": torch.zeros(2, 3), "sizes": 5}
    found = window_of(moment, Layout(1, 3, frames=2, positions=4), inputs)
    assert found == Window(((1, False), (2, False), (1, True)), 8, ((2, 3), 5))
