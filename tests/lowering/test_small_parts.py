"""What single passes do to parts that are written by hand, and the settings that they get from a model."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from mccompile.capture.part import (
    Additive,
    Filled,
    Hoisted,
    Modulated,
    Operand,
    Part,
    Positions,
    TakenFrom,
    Weight,
)
from mccompile.capture.types import Refusal
from mccompile.lowering.additive import additive_masks
from mccompile.lowering.draft import Rewritten
from mccompile.lowering.drop_buffers import drop_buffers
from mccompile.lowering.fill import fill_rows
from mccompile.lowering.hoist import hoist
from mccompile.lowering.modulated import modulated_input
from mccompile.lowering.prefixes import use_prefixes
from mccompile.lowering.strip import cut, strip_unused, stripped
from tests.lowering.refusing import MADE, MASK, TEXT, K, V, X, attending, masked, part_of, sdpa

aten = torch.ops.aten
At = dict[str, fx.Node]
Call = Callable[..., fx.Node]
W = Weight("w")


def one(body: Callable[[Call, At], fx.Node], **takes: Operand) -> Part:
    named: dict[Operand, str] = {X: "x"} | {operand: name for name, operand in takes.items()}
    return part_of(named, lambda call, at: {MADE: body(call, at)})


def rewritten(found: Rewritten | Refusal) -> Part:
    assert isinstance(found, Rewritten)
    return found.part


# ---- masks
def through_views(call: Call, at: At) -> fx.Node:
    view = call(aten.unsqueeze.default, (at["mask"], 1))
    wide = call(aten.expand.default, (view, [2, 3, 4, 4]))
    first = call(sdpa, (at["x"], at["x"], at["x"], wide))
    return call(sdpa, (first, at["x"], at["x"], view))


def as_values(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], at["mask"], at["mask"]))


def as_keys(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["mask"], at["x"]))


def copied(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], at["x"], call(aten.logical_not.default, (at["mask"],))))


def view_read_as_number(call: Call, at: At) -> fx.Node:
    view = call(aten.unsqueeze.default, (at["mask"], 1))
    return call(sdpa, (call(aten.mul.Tensor, (at["x"], view)), at["x"], at["x"], view))


def view_given(call: Call, at: At) -> fx.Node:
    call(sdpa, (at["x"], at["x"], at["x"], at["mask"]))
    return call(aten.unsqueeze.default, (at["mask"], 1))


@pytest.mark.parametrize("body", [as_values, as_keys, copied, view_read_as_number, view_given])
def test_a_mask_that_is_read_otherwise_stays_boolean(body: Callable[[Call, At], fx.Node]) -> None:
    assert isinstance(additive_masks(one(body, mask=MASK), None), Refusal)


def test_masks_and_their_views_become_additive() -> None:
    part = part_of({X: "x", MASK: "mask", TEXT: "text"},
                   lambda call, at: {MADE: through_views(call, at), TEXT: at["text"]})  # fmt: skip
    assert rewritten(additive_masks(part, None)).takes == (X, Additive("mask"), TEXT)
    two = part_of({X: "x", MASK: "mask", TEXT: "text"},
                  lambda call, at: {MADE: call(aten.add.Tensor, (through_views(call, at), at["text"]))})  # fmt: skip
    assert rewritten(additive_masks(two, None)).takes == (X, Additive("mask"), TEXT)


# ---- buffers and prefixes
def test_without_buffers_a_block_has_no_attention_that_keeps() -> None:
    found = rewritten(drop_buffers(attending(True), None))
    assert found.takes == (X,)
    assert found.attentions == ()
    assert [n.target for n in found.graph.nodes if n.op == "call_function"] == [sdpa]
    refused = drop_buffers(attending(False), None)
    assert isinstance(refused, Refusal)
    assert refused.site == "buffers"


def test_attention_without_a_mask_is_over_no_prefixes() -> None:
    assert isinstance(use_prefixes(attending(True), frozenset({"mask"})), Refusal)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_over_prefixes_has_the_scale_of_the_one_with_a_mask(scale: float | None) -> None:
    part = masked()
    (node,) = part.graph.find_nodes(op="call_function", target=sdpa)
    node.kwargs = {} if scale is None else {"scale": scale}
    found = rewritten(use_prefixes(part, frozenset({"mask"})))
    (site,) = found.attentions
    (made,) = (n for n in found.graph.nodes if n.name == site.node)
    assert made.target is torch.ops.mccompile.prefix_attention.default
    assert [str(a) for a in made.args[:3]] == ["x", "x", "x"]
    assert (str(made.args[3]), str(made.args[4]), made.args[5]) == ("bounds", "seen", scale)
    assert (site.keys, site.values, site.mask) == (K, V, MASK)


# ---- the prompt
def lasting(body: Callable[[Call, At], fx.Node], **takes: Operand) -> tuple[Part, Part] | str:
    """The rest and what is computed once, where the text lasts; or why nothing is."""
    found = hoist(one(body, **({"text": TEXT, "w": W} | takes)), frozenset({TEXT}))
    if isinstance(found, Refusal):
        return found.reason
    (once,) = found.made
    return found.part, once


def keys(call: Call, at: At) -> fx.Node:
    """Keys are projected from the prompt, values are a view of such a projection, and both are what attention reads."""
    k = call(aten.linear.default, (at["text"], at["w"]))
    v = call(aten.t.default, (call(aten.neg.default, (k,)),))
    return call(sdpa, (at["x"], k, v))


def test_what_the_prompt_alone_makes_is_computed_once() -> None:
    found = lasting(keys)
    assert not isinstance(found, str)
    rest, once = found
    assert once.takes == (TEXT, W)
    assert once.gives == (Hoisted(0, True), Hoisted(1, True))
    assert rest.takes == (X, TEXT, W, *once.gives)
    assert [n.target for n in rest.graph.nodes if n.op == "call_function"] == [sdpa]
    text, w = torch.randn(2, 3), torch.randn(3, 3)
    k, v = once(text, w)
    torch.testing.assert_close(k, torch.nn.functional.linear(text, w))
    assert torch.equal(v, -k.t())


def read_as_a_number_too(call: Call, at: At) -> fx.Node:
    k = call(aten.neg.default, (at["text"],))
    return call(sdpa, (call(aten.add.Tensor, (at["x"], k)), k, k))


def queries(call: Call, at: At) -> fx.Node:
    return call(sdpa, (call(aten.neg.default, (at["text"],)), at["x"], at["x"]))


def as_mask(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], at["x"], call(aten.neg.default, (at["text"],))))


@pytest.mark.parametrize("body", [read_as_a_number_too, queries, as_mask])
def test_what_is_not_only_attended_to_is_told_apart(body: Callable[[Call, At], fx.Node]) -> None:
    found = lasting(body)
    assert not isinstance(found, str)
    assert found[1].gives == (Hoisted(0, False),)
    assert found[0].takes[-1] == Hoisted(0, False)


def test_keys_and_values_of_one_projection_are_computed_once() -> None:
    def both(call: Call, at: At) -> fx.Node:
        parts = call(aten.chunk.default, (call(aten.linear.default, (at["text"], at["w"])), 2, -1))
        return call(sdpa, (at["x"], *(call(operator.getitem, (parts, i)) for i in (0, 1))))

    found = lasting(both)
    assert not isinstance(found, str)
    assert found[1].gives == (Hoisted(0, True), Hoisted(1, True))


def test_what_the_prompt_alone_makes_may_be_a_result() -> None:
    part = part_of({TEXT: "text"}, lambda call, at: {MADE: call(aten.neg.default, (at["text"],))})
    found = hoist(part, frozenset({TEXT}))
    assert isinstance(found, Rewritten)
    assert [n.op for n in found.part.graph.nodes] == ["placeholder", "placeholder", "output"]
    assert found.part.results()[MADE] is found.part.holders()[Hoisted(0, False)]


def test_what_is_computed_once_writes_nothing() -> None:
    def body(call: Call, at: At) -> fx.Node:
        call(aten.copy_.default, (at["k"], at["x"]))
        return call(sdpa, (at["x"], at["x"], call(aten.neg.default, (at["text"],))))

    found = lasting(body, k=K)
    assert not isinstance(found, str)
    rest, once = found
    assert once.takes == (TEXT,)
    assert len(rest.graph.find_nodes(op="call_function", target=aten.copy_.default)) == 1


def of_two_things(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], call(aten.add.Tensor, (at["text"], at["x"]))))


def random_numbers(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], call(aten.bernoulli.default, (at["text"],))))


def written_to(call: Call, at: At) -> fx.Node:
    k = call(aten.neg.default, (at["text"],))
    call(aten.copy_.default, (call(aten.t.default, (k,)), at["x"]))
    return call(sdpa, (at["x"], at["x"], k))


def entry_written_to(call: Call, at: At) -> fx.Node:
    """An entry of a list of views is written to."""
    k = call(aten.neg.default, (at["text"],))
    call(aten.copy_.default, (call(operator.getitem, (call(aten.chunk.default, (k, 2)), 0)), at["x"]))
    return call(sdpa, (at["x"], at["x"], k))


def lengths(call: Call, at: At) -> fx.Node:
    return call(aten.mul.Tensor, (at["x"], call(aten.sym_size.int, (at["text"], 0))))


def of_weights(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], call(aten.neg.default, (at["w"],))))


def views(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], call(aten.t.default, (at["text"],))))


def sizes(call: Call, at: At) -> fx.Node:
    length = call(aten.sym_size.int, (at["text"], 0))
    return call(aten.mul.Tensor, (at["x"], call(torch.sym_max, (length, 1))))


def of_nothing(call: Call, at: At) -> fx.Node:
    return call(sdpa, (at["x"], at["x"], call(aten.arange.default, (3,))))


@pytest.mark.parametrize(
    "body", [of_two_things, random_numbers, written_to, entry_written_to, of_weights, views, sizes, lengths, of_nothing]
)
def test_what_may_differ_and_what_costs_nothing_stays_in_the_block(body: Callable[[Call, At], fx.Node]) -> None:
    assert lasting(body) == "nothing is computed from it alone"


# ---- the modulated input
def through_text(call: Call, at: At) -> fx.Node:
    """A linear layer of the text lies nearer to the queries than that of the video: it is passed by."""
    video = call(aten.linear.default, (call(aten.neg.default, (at["x"],)), at["w"]))
    text = call(aten.linear.default, (at["text"], at["w"]))
    q = call(aten.mul.Tensor, (call(aten.neg.default, (video,)), text))
    return call(sdpa, (q, at["x"], at["x"]))


def two_layers(call: Call, at: At) -> fx.Node:
    """Of two linear layers in a row the one next to the attention."""
    first = call(aten.linear.default, (at["x"], at["w"]))
    second = call(aten.linear.default, (call(aten.abs.default, (first,)), at["w"]))
    return call(sdpa, (second, at["text"], at["text"]))


def many_ways(call: Call, at: At) -> fx.Node:
    """A sum of a sum with itself, forty times: looked at once each, and not once for each way to it."""
    q = call(aten.linear.default, (call(aten.neg.default, (at["x"],)), at["w"]))
    for _ in range(40):
        q = call(aten.add.Tensor, (call(aten.abs.default, (q,)), call(aten.exp.default, (q,))))
    return call(sdpa, (q, at["x"], at["x"]))


@pytest.mark.parametrize(
    ("body", "target"),
    [(through_text, aten.neg.default), (two_layers, aten.abs.default), (many_ways, aten.neg.default)],
)
def test_the_modulated_input_enters_the_nearest_layer_of_the_queries(
    body: Callable[[Call, At], fx.Node], target: object
) -> None:
    found = modulated_input(one(body, text=TEXT, w=W), X)
    assert isinstance(found, Rewritten)
    (made,) = found.made
    assert made.gives == (Modulated(),)
    given = made.results()[Modulated()]
    assert isinstance(given, fx.Node)
    assert given.target is target
    assert TEXT not in made.takes


# ---- rows that take from others
@pytest.mark.parametrize(("axis", "sizes"), [(1, (2, 5, 3)), (2, (2, 3, 5, 4)), (1, (2, 5, 3, 4))])
def test_tokens_have_the_keys_of_those_that_they_take_from(axis: int, sizes: tuple[int, ...]) -> None:
    """Each sample its own: what is filled lies where the tokens lie, and is what the selected ones have computed."""

    def body(call: Call, at: At) -> fx.Node:
        return call(aten.index_copy_.default, (at["k"], axis, at["rows"], at["x"]))

    part = rewritten(fill_rows(one(body, k=K, rows=Positions("video")), {"k": len(sizes)}))
    assert part.takes == (X, K, Positions("video"), Filled(), TakenFrom())
    x = torch.randn(*(2 if a == axis else n for a, n in enumerate(sizes)))
    filled, taken = torch.tensor([0, 2, 3]), torch.tensor([[0, 1, 0], [1, 1, 0]])
    (made,) = part(x, torch.zeros(sizes), torch.tensor([0, 3]), filled, taken)
    wanted = torch.zeros(sizes)
    for sample in range(2):
        wanted[sample].index_copy_(axis - 1, filled, x[sample].index_select(axis - 1, taken[sample]))
    assert torch.equal(made, wanted)
    named = [n.name for n in part.graph.find_nodes(op="placeholder")]
    assert named == ["x", "k", "rows", "filled", "taken"]


# ---- inputs and results
def test_what_nothing_reads_and_nobody_wants_goes() -> None:
    part = part_of({X: "x", TEXT: "text", W: "w", MASK: "mask"}, lambda call, at: {
        MADE: call(aten.mul.Tensor, (at["x"], at["w"])), TEXT: call(aten.neg.default, (at["text"],)), MASK: at["mask"],
    })  # fmt: skip
    assert isinstance(strip_unused(part, None), Refusal)
    assert stripped(part) is part
    slim = stripped(part, frozenset({MADE, MASK}))
    assert (slim.takes, slim.gives) == ((X, W, MASK), (MADE, MASK))
    assert (stripped(part, frozenset({MASK})).takes, len(stripped(part, frozenset({MASK})).gives)) == ((MASK,), 1)


@pytest.mark.parametrize("writes", [None, True, False])
def test_a_part_is_cut_out_with_what_it_writes_or_without(writes: bool | None) -> None:
    """With it unless the caller says that nothing is made of it."""
    part = attending(True)
    (node,) = part.graph.find_nodes(op="call_function", target=sdpa)
    found = cut(part, {MADE: node}) if writes is None else cut(part, {MADE: node}, writes)
    assert found.takes == ((X,) if writes is False else (X, K, V))
    copies = found.graph.find_nodes(op="call_function", target=aten.copy_.default)
    assert len(copies) == (0 if writes is False else 2)
