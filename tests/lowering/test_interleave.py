"""Values that are written half by half: what is joined gives the same values, and what is not exactly halves stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from mccompile.capture.part import Part
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Rewritten
from mccompile.lowering.interleave import interleave
from tests.lowering.refusing import END, MADE, TEXT, X, part_of

aten = torch.ops.aten
Call = Callable[..., fx.Node]


def entries(call: Call, whole: fx.Node, *, axis: int = 1, start: int = 0, end: int = END, step: int = 2) -> fx.Node:
    return call(aten.slice.Tensor, (whole, axis, start, end, step))


def both(call: Call, at: dict[str, fx.Node], axis: int = 1, odd_first: bool = False, end: int = END) -> fx.Node:
    """A value whose even entries are those of the text, and whose odd ones are the text's negated."""
    whole = call(aten.empty_like.default, (at["x"],))
    negated = call(aten.neg.default, (at["text"],))
    halves = [(0, at["text"]), (1, negated)]
    for start, value in halves[::-1] if odd_first else halves:
        call(aten.copy_.default, (entries(call, whole, axis=axis, start=start, end=end), value))
    return whole


def thirds(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    """A value in whose first entries a third half is written too."""
    whole = both(call, at)
    call(aten.copy_.default, (entries(call, whole), at["text"]))
    return whole


def read_early(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    whole = call(aten.empty_like.default, (at["x"],))
    call(aten.copy_.default, (entries(call, whole), at["text"]))
    call(aten.copy_.default, (at["text"], call(aten.neg.default, (entries(call, whole),))))
    call(aten.copy_.default, (entries(call, whole, start=1), at["text"]))
    return whole


def of_two_axes(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    whole = call(aten.empty_like.default, (at["x"],))
    for axis in (0, 1):
        call(aten.copy_.default, (entries(call, whole, axis=axis, start=axis), at["text"]))
    return whole


def result_read(place: int) -> Callable[[Call, dict[str, fx.Node]], fx.Node]:
    """What the copy of a half returns is read."""

    def body(call: Call, at: dict[str, fx.Node]) -> fx.Node:
        whole = call(aten.empty_like.default, (at["x"],))
        copies = [call(aten.copy_.default, (entries(call, whole, start=n), at["text"])) for n in (0, 1)]
        call(aten.copy_.default, (at["text"], copies[place]))
        return whole

    return body


def made_of_itself(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    whole = call(aten.empty_like.default, (at["x"],))
    call(aten.copy_.default, (entries(call, whole), at["text"]))
    call(aten.copy_.default, (entries(call, whole, start=1), whole))
    return whole


def half_read(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    """A half is read through the slice into which it was written."""
    whole = call(aten.empty_like.default, (at["x"],))
    even = entries(call, whole)
    call(aten.copy_.default, (even, at["text"]))
    call(aten.copy_.default, (entries(call, whole, start=1), call(aten.neg.default, (even,))))
    return whole


def halves_copied_elsewhere(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    whole = call(aten.empty_like.default, (at["x"],))
    for start in (0, 1):
        call(aten.copy_.default, (at["text"], entries(call, whole, start=start)))
    return whole


def sliced(**how: int) -> Callable[[Call, dict[str, fx.Node]], fx.Node]:
    def body(call: Call, at: dict[str, fx.Node]) -> fx.Node:
        whole = call(aten.empty_like.default, (at["x"],))
        for start in (0, 1):
            call(aten.copy_.default, (entries(call, whole, **(how | {"start": start})), at["text"]))
        return whole

    return body


def selected(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    """Single entries, and not every other one."""
    whole = call(aten.empty_like.default, (at["x"],))
    for place in (0, 1):
        call(aten.copy_.default, (call(aten.select.int, (whole, 1, place)), at["text"]))
    return whole


def without_steps(call: Call, at: dict[str, fx.Node]) -> fx.Node:
    """Slices of every entry, in which the step is left out."""
    whole = call(aten.empty_like.default, (at["x"],))
    for start in (0, 1):
        call(aten.copy_.default, (call(aten.slice.Tensor, (whole, 1, start, END)), at["text"]))
    return whole


STAYING: dict[str, Callable[[Call, dict[str, fx.Node]], fx.Node]] = {
    "a third write": thirds, "read before both are there": read_early, "two axes": of_two_axes,
    "the first copy is read": result_read(0), "the second copy is read": result_read(1),
    "made of itself": made_of_itself, "a half is read": half_read, "copied elsewhere": halves_copied_elsewhere,
    "not to the end": sliced(end=4), "to an entry far on": sliced(end=2**30),
    "thirds": sliced(step=3), "counted from the end": sliced(axis=-1),
    "single entries": selected, "every entry": without_steps,
}  # fmt: skip


def given(body: Callable[[Call, dict[str, fx.Node]], fx.Node]) -> Part:
    return part_of({X: "x", TEXT: "text"}, lambda call, at: {MADE: body(call, at)})


@pytest.mark.parametrize("how", STAYING)
def test_what_is_not_exactly_two_halves_stays(how: str) -> None:
    refused = interleave(given(STAYING[how]), None)
    assert isinstance(refused, Refusal)


@pytest.mark.parametrize("how", STAYING)
def test_it_stays_beside_what_is_joined(how: str) -> None:
    def body(call: Call, at: dict[str, fx.Node]) -> fx.Node:
        return call(aten.add.Tensor, (STAYING[how](call, at), both(call, at)))

    made = interleave(given(body), None)
    assert isinstance(made, Rewritten)
    targets = [n.target for n in made.part.graph.nodes]
    assert targets.count(aten.empty_like.default) == targets.count(aten.stack.default) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("odd_first", [False, True])
@pytest.mark.parametrize("end", [END, 2**62])
def test_what_is_joined_gives_the_same_values(axis: int, odd_first: bool, end: int) -> None:
    """In the type of the value that it replaces, although the halves are wider."""
    part = given(lambda call, at: both(call, at, axis, odd_first, end))
    made = interleave(part, None)
    assert isinstance(made, Rewritten)
    sizes = [2, 4, 6]
    x = torch.zeros(sizes, dtype=torch.bfloat16)
    text = torch.randn(*(n // 2 if a == axis else n for a, n in enumerate(sizes)))
    (wanted,), (found,) = part(x, text), made.part(x, text)
    assert torch.equal(found, wanted)
    assert found.dtype == wanted.dtype
    assert [n for n in made.part.graph.nodes if n.target is aten.copy_.default] == []


def test_every_reader_gets_the_joined_value() -> None:
    part = given(lambda call, at: call(aten.neg.default, (both(call, at),)))
    made = interleave(part, None)
    assert isinstance(made, Rewritten)
    x, text = torch.zeros(2, 4), torch.randn(2, 2)
    assert torch.equal(made.part(x, text)[0], part(x, text)[0])
