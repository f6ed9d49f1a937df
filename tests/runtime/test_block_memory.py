"""What is kept of blocks, by itself: buffers, what is made of the prompt once, and how it is sent home."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.part import (
    Buffer,
    Index,
    Shared,
    Stream,
)
from mccompile.capture.types import Beside
from mccompile.runtime.operands import Misplaced
from mccompile.runtime.shapes import shaped
from mccompile.runtime.store import Memory
from tests.runtime.test_block_rows import Part, X, calls, port, rows


def test_what_a_block_makes_of_the_prompt_is_made_once_for_the_same_values() -> None:
    made_of = list[Any]()

    def part(resolve: Any) -> tuple[Any, ...]:
        made_of.append(resolve(Shared("text")))
        return (made_of[-1] * 2,)

    part.takes = (Shared("text"), Buffer("k"))  # type: ignore[attr-defined]
    made = calls(_once={0: part}, _batched={"text"})
    store, text = Memory(), torch.arange(4.0).view(2, 2)
    assert made.lasting(0) == ("text",)
    assert made.lasting(1) == ()
    assert made._lasting(1, rows(1), {}, store) == ()
    (first,) = made._lasting(0, rows(1), {"text": text}, store)
    assert first.tolist() == [[0, 2], [4, 6]]
    assert made._lasting(0, rows(1), {"text": text}, store)[0] is first
    assert made._lasting(0, rows(1, sample=1), {"text": text}, store)[0].tolist() == [[4, 6]]
    assert len(made_of) == 1
    other = text.clone()
    assert made._lasting(0, rows(1), {"text": other}, store)[0] is not first
    assert len(made_of) == 2
    made._batched = set()
    assert made._lasting(0, rows(1, sample=1), {"text": other}, store)[0].shape == (2, 2)
    made.staging = SimpleNamespace(home=lambda t: ("home", t))
    assert made._made_once(0, [text], {"text": text}).values[0][0] == "home"


def test_what_cannot_be_cut_apart_is_made_for_each_sample() -> None:
    """Such as a mask for every head: its first axis is not that of the samples."""
    asked = list[Any]()

    def part(resolve: Any) -> tuple[Any, ...]:
        asked.append(resolve(Shared("text")))
        return (asked[-1].repeat(3, 1),)

    part.takes = (Shared("text"),)  # type: ignore[attr-defined]
    made, store, text = calls(_once={0: part}, _batched={"text"}), Memory(), torch.arange(4.0).view(2, 2)
    (own,) = made._lasting(0, rows(1, sample=1), {"text": text}, store)
    assert own.tolist() == [[2.0, 3.0]] * 3
    assert made._lasting(0, rows(1, sample=1), {"text": text}, store)[0] is own
    assert len(asked) == 2
    assert list(store.apart) == [(0, 1)]
    made._lasting(0, rows(1, sample=1), {"text": text.clone()}, store)
    assert len(asked) == 4


def test_kept_tensors_of_a_block_are_those_of_the_sample() -> None:
    picks = SimpleNamespace(of=lambda i, chosen, store, staging: ("picks",))
    made = calls(_picks=picks, _once={})
    new = list[int]()
    made.new_buffers = lambda i, env, shared: (new.append(i), (X, X + 10))[1]
    store = Memory()
    found = made._kept(2, rows(1, sample=1), {}, {}, store)
    assert [getattr(one, "shape", one) for one in found] == [(1, 4, 1), (1, 4, 1), "picks"]
    assert (new, store.buffers[2][0] is X) == ([2], True)
    made._kept(2, rows(1), {}, {}, store)
    assert new == [2]


def test_new_buffers_are_made_like_the_streams_that_are_there() -> None:
    """A stream of the same rows stands in for one that only the region makes, and without tokens the one before it."""
    ports = port("x"), port("inner"), port("vec", None), port("joined", 1, "3+video", Beside(3, 0))
    roots = SimpleNamespace(root_of=lambda name, env: {"vec2": "vec"}.get(name, name))
    made = calls(*ports, port("vec2", None), port("first", 1, "video", Beside(0, 0)), _captured=roots)
    env = {"x": X, "vec": torch.zeros(2, 1), "free": X}
    made._allocate = {0: Part(Stream("x"), Stream("inner"), Stream("vec2"), Shared("text"))}
    found = made.new_buffers(0, env, {"text": X})
    assert [id(one) for one in found] == [id(one) for one in (X, X, env["vec"], X)]
    made._allocate = {0: Part(Stream("joined"))}
    (found,) = made.new_buffers(0, {"first": X}, {})
    assert found.shape == (2, 7, 1)
    made._allocate = {0: Part(Index())}
    with pytest.raises(Misplaced, match="a allocate part takes"):
        made.new_buffers(0, env, {})
    made.staging = SimpleNamespace(home=lambda t: ("home", t))
    made._allocate = {0: Part(Stream("x"))}
    assert made.new_buffers(0, env, {})[0][0] == "home"


def test_the_shape_of_a_stream_that_only_a_later_block_makes() -> None:
    ports = {
        "text": port("text"), "vec": port("vec", None, "", Beside(0, 0)),
        "over": port("over", 2, "video", Beside(0, 0)),
        "odd": port("odd", 1, "a", Beside(None, 1)), "x": port("x", 1, "1+video+1", Beside(1, 1)),
    }  # fmt: skip
    env = {"none": X, **{name: torch.zeros(2, 6, 3) for name in ports}}
    found = shaped(port("new", 1, "5+video+2", Beside(5, 2)), env, ports)
    assert found.shape == (2, 4 + 7, 3)
    assert shaped(port("new", 1, "video", Beside(None, 2)), env, ports).shape == (2, 6, 3)
    alone = {"x": port("x", beside=Beside(0, 0))}
    assert shaped(port("new", 1, "video", Beside(0, 0)), {"x": torch.zeros(2, 1, 3)}, alone).shape == (2, 1, 3)
    for other in (port("new", 3, "video", Beside(0, 0)), port("new", 1, "video", None)):
        with pytest.raises(Misplaced, match="allocate part"):
            shaped(other, env, ports)


def test_the_rows_that_a_block_has_written_are_sent_home() -> None:
    sent = list[Any]()
    specs = (SimpleNamespace(token_axis=1, rows="video"), SimpleNamespace(token_axis=1, rows="3+video"))
    made = calls(_captured=SimpleNamespace(kinds=(SimpleNamespace(buffers=specs),)))
    made.staging = SimpleNamespace(put=lambda *given: sent.append(given))
    chosen = rows(1, 3, vectors={"video": torch.tensor([1, 3]), "3+video": torch.tensor([0])})
    made._put_back(0, ("keys", "values"), (X, X + 10), chosen)
    assert [(home, axis, at.tolist(), value[0, :, 0].tolist()) for home, axis, at, value in sent] == [
        ("keys", 1, [1, 3], [1.0, 3.0]), ("values", 1, [0], [10.0])
    ]  # fmt: skip


def test_keys_are_given_out_as_the_model_has_them() -> None:
    nodes = (SimpleNamespace(kwargs={}), SimpleNamespace(kwargs={"dtype": torch.float16}))
    kinds = (None, SimpleNamespace(allocate=SimpleNamespace(graph=SimpleNamespace(nodes=nodes))))
    made = calls(_captured=SimpleNamespace(kinds=kinds))
    made.cache.dtype = "bfloat16"
    found = made.given_out(X.bfloat16(), 1)
    assert (found.dtype, found.tolist()) == (torch.float16, X.tolist())
    made.staging = SimpleNamespace(device=torch.device("meta"))
    assert made.given_out(X.bfloat16(), 1).device.type == "meta"
