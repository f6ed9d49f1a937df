"""What blocks take, by itself: kept picks, what a selection tells, and the names and weights of one block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.part import Additive, Buffer, ChosenKeys, Index, Shared, Stream, TakenFrom, Weight
from mccompile.runtime.chosen import KeptPicks
from mccompile.runtime.nearest import Filling
from mccompile.runtime.operands import Misplaced, bound_at, of_shared, weight_of
from mccompile.runtime.rows import KeyChoices, worth_of
from mccompile.runtime.store import Memory, Once
from tests.runtime.test_block_rows import CHOICE, WORTH, X, rows


def test_picks_are_kept_where_keys_are() -> None:
    kinds = (SimpleNamespace(buffers=(SimpleNamespace(name="k0"), SimpleNamespace(name="k1"))),)
    site = SimpleNamespace(index=3, kind=0)
    picks = KeptPicks(
        SimpleNamespace(kinds=kinds, blocks=(site,)),  # type: ignore[arg-type]
        {3: SimpleNamespace(takes=(ChosenKeys("k1"), Buffer("k0"))), 4: SimpleNamespace(takes=())},  # type: ignore[dict-item]
    )
    assert (picks.operands(3), picks.operands(4)) == ((ChosenKeys("k1"),), ())
    store = Memory(buffers={3: (torch.zeros(2, 5, 1), torch.zeros(2, 6, 1))})
    (made,) = picks.of(3, rows(1, choice=CHOICE), store, None)
    assert (made.shape, made.dtype, bool(made.any())) == ((2, 6, 4), torch.int32, False)
    assert picks.of(3, rows(1, choice=CHOICE, sample=1), store, None)[0].shape == (1, 6, 4)
    assert picks.of(4, rows(1), store, None) == ()
    made.fill_(7)
    assert int(picks.of(3, rows(1, choice=CHOICE), store, None)[0].sum()) == 7 * 48
    picks.keep([made], [torch.ones(2, 6, 4)], rows(1, choice=CHOICE), None)
    assert int(made.sum()) == 48
    picks.keep([made], [torch.zeros(2, 6, 4)], rows(1, choice=KeyChoices(WORTH, 4, False)), None)
    picks.keep([], [], rows(1), None)
    assert int(made.sum()) == 48
    asked = list[Any]()
    staging: Any = SimpleNamespace(home=lambda t: ("home", t), put=lambda *given: asked.append(given))
    store.chosen.clear()
    assert picks.of(3, rows(1, choice=CHOICE), store, staging)[0][0] == "home"
    new = torch.ones(2, 6, 4)
    picks.keep([made], [new], rows(1, choice=CHOICE), staging)
    assert asked == [(made, None, None, new)]


def test_what_rows_know_of_their_selection() -> None:
    fill = Filling(torch.tensor([9]), torch.tensor([[8]]))
    chosen = rows(1, filling=fill, choice=CHOICE)
    assert chosen.told(TakenFrom()) is fill.taken
    assert chosen.choices is CHOICE
    with pytest.raises(AssertionError):
        _ = rows(1).choices
    with pytest.raises(AssertionError):
        rows(1).told(TakenFrom())
    assert worth_of(None).numel() == 0
    worth = worth_of(SimpleNamespace(worth=(1.0, 0.5)))  # type: ignore[arg-type]
    assert (worth.tolist(), worth.dtype) == ([1.0, 0.5], torch.float32)


def test_parts_that_take_shared_values_alone() -> None:
    resolve = of_shared({"text": 3})
    assert resolve(Shared("text")) == 3
    with pytest.raises(Misplaced, match="a once part takes"):
        resolve(Stream("text"))


def test_a_part_at_a_block_has_the_names_and_weights_of_that_block() -> None:
    full = SimpleNamespace(takes=(Stream("s"), Shared("m"), Weight("w")), gives=(Stream("out"),))
    module = torch.nn.Module()
    module.inner = torch.nn.Module()
    module.inner.register_buffer("w7", X)
    captured: Any = SimpleNamespace(kinds=(SimpleNamespace(full=full),), module=module)
    site: Any = SimpleNamespace(
        kind=0, streams_in=("x7",), streams_out=("y7",), shared=("mask7",), weights=("inner.w7",)
    )
    part: Any = SimpleNamespace(takes=(Weight("w"), Stream("s"), Shared("m"), Additive("m"), Index()))
    bound = bound_at(part, lambda *given: given, captured, site)
    assert bound.takes == (Weight("inner.w7"), Stream("x7"), Shared("mask7"), Additive("mask7"), Index())
    found = bound(lambda operand: ("found", operand))
    assert found[0] is X
    assert found[1:] == tuple(("found", operand) for operand in bound.takes[1:])
    assert bound.arguments(lambda operand: 1)[1:] == [1, 1, 1, 1]
    assert weight_of(module, "inner.w7") is X  # type: ignore[arg-type]
    module.text = "no weight"
    with pytest.raises(AssertionError):
        weight_of(module, "text")  # type: ignore[arg-type]


def test_what_is_made_of_a_prompt_is_remembered_by_the_very_values() -> None:
    once = Once((X,), ())
    assert once.made_of([X])
    assert not once.made_of([X.clone()])
