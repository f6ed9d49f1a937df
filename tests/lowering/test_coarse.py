"""Shared values whose rows blocks may pick for themselves: small gathers, each with one thing that rules it out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile.capture.part import Index, Operand, Part, Pick, RowSource
from mccompile.capture.types import Along, CapturedModel, Port, SampleCount
from mccompile.lowering.coarse import Coarse, find_coarse
from mccompile.lowering.draft import Rewritten
from mccompile.lowering.picks import pick_inside
from tests.lowering.refusing import MADE, MODULATION, TEXT, X, part_of

aten = torch.ops.aten
At = dict[str, Any]
Call = Callable[..., fx.Node]
Chain = Callable[[Call, At], fx.Node]
SOURCES = (
    Port("per_frame", 1, "frames", frozenset({"t"}), Along(0)), Port("batch", None, "", frozenset(), SampleCount()),
    Port("count", None, "", frozenset(), None),
)  # fmt: skip


def gather(chain: Chain, pick: Callable[[Call, At], fx.Node] | None = None) -> Part:
    """A gather that picks the frame of each selected token of [samples, frames, 6, channels], and what it makes of it.

    chain: gets the picked rows as `rows`, the frame of each token as `frame`, and the number of samples as `batch`.
    """

    def body(call: Call, at: At) -> Any:
        at["frame"] = call(aten.floor_divide.default, (at["index"], 4))
        at["rows"] = pick(call, at) if pick else call(aten.index_select.default, (at["per_frame"], 1, at["frame"]))
        return {MODULATION: chain(call, at)}

    takes: dict[Operand, str] = {RowSource(p.name): p.name for p in SOURCES} | {Index(): "index"}
    return part_of(takes, body)


def found(part: Part | None, *reads: tuple[int, tuple[str, ...]]) -> tuple[Coarse, ...]:
    """reads: for each block its kind, and the shared values that it takes."""
    blocks = tuple(SimpleNamespace(kind=kind, shared=shared) for kind, shared in reads or [(0, ("text", "m"))])
    return find_coarse(cast(CapturedModel, SimpleNamespace(gather=part, sources=SOURCES, blocks=blocks)))


def of(target: Any, *rest: Any, **named: Any) -> Chain:
    return lambda call, at: call(target, (at["rows"], *rest), named)


def tokens(call: Call, at: At) -> fx.Node:
    return call(aten.sym_size.int, (at["index"], 0))


KEEPING: dict[str, Chain] = {
    "contiguous": of(aten.contiguous.default), "clone": of(aten.clone.default),
    "a cast": of(aten.to.dtype, torch.float32), "a copy": of(aten._to_copy.default, dtype=torch.float32),
    "a view": lambda call, at: call(aten.view.default, (at["rows"], [at["batch"], tokens(call, at), -1])),
    "a reshape at one sample": lambda call, at: call(aten.reshape.default, (at["rows"], [1, tokens(call, at), 12])),
    "an expansion": of(aten.expand.default, [2, -1, -1, -1]),
    "a number of rows of the frames": lambda call, at: call(
        aten.view.default, (at["rows"], [at["batch"], call(aten.sym_size.int, (at["frame"], 0)), -1])
    ),
    "rows that repeat": of(aten.repeat.default, [1, 1, 1, 2]),
    "axes behind the first": of(aten.flatten.using_ints, 1, 2), "the last axis": of(aten.unsqueeze.default, -1),
    "axes that change places": of(aten.transpose.int, 1, 2), "split": of(aten.unflatten.int, 2, [2, 3]),
    "squeezed": of(aten.squeeze.dim, 2),
    "several": lambda call, at: call(
        aten.contiguous.default, (call(aten.view.default, (at["rows"], [at["batch"], tokens(call, at), -1])),)
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", KEEPING)
def test_rows_that_are_picked_from_a_smaller_value_alone_are_found(how: str) -> None:
    (coarse,) = found(gather(KEEPING[how]))
    assert (coarse.name, coarse.source) == ("m", "per_frame")
    assert coarse.pick.target is aten.index_select.default
    assert coarse.index.target is aten.floor_divide.default
    made = [n for n in coarse.pick.graph.nodes if n in coarse.chain]
    assert list(coarse.chain) == made  # from the pick to the rows
    assert len(made) == (2 if how == "several" else 1)


def second(call: Call, at: At) -> fx.Node:
    """The rows of every frame at once: no index of one row for each token."""
    return call(aten.index_select.default, (at["per_frame"], 1, at["index"]))


RULED_OUT: dict[str, tuple[Chain, Callable[[Call, At], fx.Node] | None]] = {
    "no pick": (lambda call, at: at["per_frame"], None),
    "a sum": (lambda call, at: call(aten.add.Tensor, (at["rows"], at["rows"])), None),
    "an operator along channels": (of(aten.softmax.int, -1), None),
    "a pick of samples": (
        of(aten.clone.default), lambda call, at: call(aten.index_select.default, (at["per_frame"], 0, at["frame"])),
    ),
    "a pick of another value": (
        of(aten.clone.default),
        lambda call, at: call(aten.index_select.default, (call(aten.neg.default, (at["per_frame"],)), 1, at["frame"])),
    ),
    "a pick of the tokens themselves": (of(aten.clone.default), second),
    "sizes that are made elsewhere": (of(aten.view.default, "sizes"), None),
    "the batch behind the first axis": (
        lambda call, at: call(aten.view.default, (at["rows"], [1, at["batch"], -1])), None,
    ),
    "a first size that is left out": (of(aten.view.default, [-1, 12]), None),
    "a first size that is another number": (
        lambda call, at: call(aten.view.default, (at["rows"], [at["count"], 12])), None,
    ),
    "a number of tokens at the first axis": (
        lambda call, at: call(aten.view.default, (at["rows"], [tokens(call, at), -1])), None,
    ),
    "samples that repeat": (of(aten.repeat.default, [2, 1, 1, 1]), None),
    "repeats that are made elsewhere": (of(aten.repeat.default, "times"), None),
    "the first axis flattened": (of(aten.flatten.using_ints, 0, 1), None),
    "a first axis that changes places": (of(aten.transpose.int, 0, 1), None),
    "an axis that comes to the front": (of(aten.transpose.int, 1, 0), None),
    "a new first axis": (of(aten.unsqueeze.default, 0), None),
    "an axis from the end": (of(aten.unsqueeze.default, -2), None),
    "an axis that is made elsewhere": (of(aten.unsqueeze.default, "axis"), None),
    "a size of another axis": (
        lambda call, at: call(aten.view.default, (at["rows"], [1, call(aten.sym_size.int, (at["index"], 1)), -1])),
        None,
    ),
    "a size of the source": (
        lambda call, at: call(aten.view.default, (at["rows"], [1, call(aten.sym_size.int, (at["per_frame"], 0)), -1])),
        None,
    ),
    "a number that is no size": (
        lambda call, at: call(aten.view.default, (at["rows"], [1, call(aten.neg.default, (at["index"], 0)), -1])), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", RULED_OUT)
def test_rows_of_anything_else_stay_with_the_gather(how: str) -> None:
    chain, pick = RULED_OUT[how]
    assert found(gather(chain, pick)) == ()


def test_an_index_of_several_vectors_has_other_entries_than_each_of_them() -> None:
    """How many tokens were selected is not how many rows are picked."""

    def pick(call: Call, at: At) -> fx.Node:
        both = call(aten.cat.default, ([at["index"], at["index"]],))
        at["joined"] = call(aten.remainder.Scalar, (both, 4))
        return call(aten.index_select.default, (at["per_frame"], 1, at["joined"]))

    sized = gather(lambda call, at: call(aten.view.default, (at["rows"], [1, tokens(call, at), -1])), pick)
    assert found(sized) == ()
    own = gather(
        lambda call, at: call(aten.view.default, (at["rows"], [1, call(aten.sym_size.int, (at["joined"], 0)), -1])),
        pick,
    )
    assert [c.index.target for c in found(own)] == [aten.remainder.Scalar]


def test_blocks_of_one_kind_read_a_value_at_the_same_places() -> None:
    part = gather(of(aten.clone.default))
    assert found(part, (0, ("m", "text")), (0, ("m", "other")), (1, ("text", "m")))
    assert found(part, (0, ("m", "text")), (0, ("text", "m"))) == ()
    assert found(part, (0, ("m", "m")), (0, ("m", "text"))) == ()


def test_blocks_make_two_coarse_values_of_one_source_which_they_take_once() -> None:
    def body(call: Call, at: At) -> Any:
        frame = call(aten.floor_divide.default, (at["index"], 4))
        rows = call(aten.index_select.default, (at["per_frame"], 1, frame))
        sized = call(aten.view.default, (rows, [at["batch"], tokens(call, at), -1]))
        return {MODULATION: call(aten.clone.default, (rows,)), TEXT: sized}

    takes: dict[Operand, str] = {RowSource(p.name): p.name for p in SOURCES} | {Index(): "index"}
    two = found(part_of(takes, body))
    assert [c.name for c in two] == ["m", "text"]
    reading = part_of({X: "x", MODULATION: "m", TEXT: "text"}, lambda call, at: {
        MADE: call(aten.mul.Tensor, (at["m"], call(aten.add.Tensor, (at["text"], at["x"]))))
    })  # fmt: skip
    inside = pick_inside(reading, two)
    assert isinstance(inside, Rewritten)
    assert inside.part.takes == (X, RowSource("per_frame"), Pick("m"), Pick("text"))
    x, per_frame, frame = torch.randn(1, 2, 3), torch.randn(1, 4, 3), torch.tensor([2, 0])
    rows = per_frame[:, frame]
    assert torch.equal(inside.part(x, per_frame, frame, frame)[0], rows * (rows + x))


def test_a_model_without_rows_has_nothing_to_pick() -> None:
    assert found(None) == ()
