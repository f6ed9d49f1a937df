"""How passes change a copy of a part: the part itself stays, and what is known of a value follows it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import fx

from mccompile.capture.part import Additive, Part, Weight
from mccompile.lowering.draft import Draft, inputs_of, mutates
from mccompile.lowering.trace_fx import build_graph
from tests.lowering.refusing import MADE, MASK, TEXT, K, V, X, attending, masked, part_of, sdpa

aten = torch.ops.aten


def test_a_copy_changes_and_the_part_does_not() -> None:
    part = masked()
    text = str(part.graph)
    draft = Draft(part)
    added = draft.take(TEXT, "text")
    (node,) = draft.graph.find_nodes(op="call_function", target=sdpa)
    with draft.graph.inserting_after(node):
        new = draft.graph.call_function(aten.add.Tensor, (draft.takes[X], added))
    new.meta = {"val": None}
    node.meta["val"] = 3
    draft.replace(node, new)
    draft.rename({MASK: Additive("mask")})
    made = draft.part()
    assert str(part.graph) == text
    assert made.takes == (X, Additive("mask"), TEXT)
    assert [n.name for n in made.graph.find_nodes(op="placeholder")] == ["x", "mask", "text"]
    result = made.results()[MADE]
    assert isinstance(result, fx.Node)
    assert (result.target, result.meta["val"]) == (aten.add.Tensor, 3)
    (site,) = made.attentions
    assert site.node == result.name  # what was known of the attention is known of what stands for it


def test_a_site_whose_attention_is_gone_goes_too() -> None:
    draft = Draft(masked())
    draft.gives = {MADE: draft.takes[X]}
    made = draft.part()
    assert made.attentions == ()
    assert [n.op for n in made.graph.nodes] == ["placeholder", "placeholder", "output"]
    draft = Draft(made)
    draft.drop(MASK)
    assert draft.part().takes == (X,)


def test_every_copy_is_found_by_the_node_that_it_is_of() -> None:
    part = attending(True)
    draft = Draft(part)
    assert {n.name for n in draft.copies} == {n.name for n in part.graph.nodes if n.op != "output"}
    assert all(copy.name == node.name and copy.graph is draft.graph for node, copy in draft.copies.items())
    assert [n.name for n in draft.attentions] == [s.node for s in part.attentions]


def test_a_value_takes_the_place_of_another_for_all_that_read_it() -> None:
    part = part_of({X: "x"}, lambda call, at: {MADE: call(aten.abs.default, (call(aten.neg.default, (at["x"],)),))})
    draft = Draft(part)
    (old,) = draft.graph.find_nodes(op="call_function", target=aten.neg.default)
    with draft.graph.inserting_after(old):
        new = draft.graph.call_function(aten.exp.default, (draft.takes[X],))
    draft.replace(old, new)
    assert [n.target for n in draft.graph.nodes if n.op == "call_function"] == [aten.exp.default, aten.abs.default]
    (value,) = draft.part()(torch.zeros(2))
    assert torch.equal(value, torch.ones(2))


def test_a_value_that_is_read_before_it_is_made_is_an_error() -> None:
    draft = Draft(part_of({X: "x"}, lambda call, at: {MADE: call(aten.neg.default, (at["x"],))}))
    (first,) = draft.graph.find_nodes(op="call_function", target=aten.neg.default)
    late = draft.graph.call_function(aten.exp.default, (draft.takes[X],))
    first.args = (late,)
    with pytest.raises(RuntimeError, match="before it has been defined"):
        draft.part()


def test_tensors_of_the_module_that_nothing_reads_go() -> None:
    module = torch.nn.Module()
    module.register_buffer("scale", torch.ones(1))
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.get_attr("scale")
    graph.output((x,))
    made = Draft(Part(fx.GraphModule(module, graph), (X,), (MADE,))).part()
    assert [n.op for n in made.graph.nodes] == ["placeholder", "output"]


def test_operators_that_write_stay_though_nothing_reads_them() -> None:
    """And what they write is made; other values that nothing reads are not."""

    def body(call, at):  # type: ignore[no-untyped-def]
        call(aten.copy_.default, (at["k"], call(aten.neg.default, (at["x"],))))
        call(aten.abs.default, (call(aten.exp.default, (at["x"],)),))
        return {MADE: at["x"]}

    part = Draft(part_of({X: "x", K: "k"}, body)).part()
    assert [n.target for n in part.graph.nodes if n.op == "call_function"] == [aten.neg.default, aten.copy_.default]


def test_constants_are_results_too() -> None:
    part = part_of({X: "x"}, lambda call, at: {MADE: at["x"], V: 3})  # type: ignore[dict-item]
    assert Draft(part).part().results()[V] == 3


def test_a_value_is_made_from_placeholders() -> None:
    def body(call, at):  # type: ignore[no-untyped-def]
        first = call(aten.add.Tensor, (at["x"], at["text"]))
        return {MADE: call(aten.mul.Tensor, (first, first)), TEXT: call(aten.neg.default, (at["w"],))}

    part = part_of({X: "x", TEXT: "text", Weight("w"): "w"}, body)
    results = part.results()
    names = [{n.name for n in inputs_of(results[r])} for r in (MADE, TEXT)]  # type: ignore[arg-type]
    assert names == [{"x", "text"}, {"w"}]
    (x,) = (n for n in part.graph.nodes if n.name == "x")
    assert inputs_of(x) == {x}


@pytest.mark.parametrize(
    ("target", "writes"), [(aten.copy_.default, True), (aten.neg.default, False), (torch.neg, False), (len, False)]
)
def test_operators_tell_whether_they_write(target: object, writes: bool) -> None:
    graph = fx.Graph()
    node = graph.call_function(target, (graph.placeholder("x"),))  # type: ignore[arg-type]
    assert mutates(node) == writes


def test_a_graph_is_traced_from_a_function_of_names() -> None:
    """In the order of the outputs, and without what none of them needs."""

    def function(of: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": of["a"] + of["b"], "less": of["a"] - of["b"], "more": of["a"] * 3}

    graph = build_graph(("a", "b"), function, ("less", "sum"))
    assert [float(v) for v in graph(torch.tensor(5.0), torch.tensor(2.0))] == [3.0, 7.0]
    assert len([n for n in graph.graph.nodes if n.op == "call_function"]) == 2
