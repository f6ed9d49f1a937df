"""Graphs as text: what is written is read back, equal graphs have equal fingerprints, and odd text is refused."""

from __future__ import annotations

import json
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from mccompile.backend.graph_text import UnwritableGraph, fingerprint, read_graph, read_value, write_graph, write_value

aten = torch.ops.aten


def module(name: str = "x", scale: float = 2.0, width: int = 4) -> fx.GraphModule:
    root = nn.Module()
    root.inner = nn.Linear(width, width)
    graph = fx.Graph()
    x = graph.placeholder(name)
    size = graph.call_function(aten.sym_size.int, (x, 0))
    twice = graph.call_function(operator.mul, (size, 2))
    weight = graph.get_attr("inner.weight")
    y = graph.call_function(aten.linear.default, (x, weight), {"bias": None})
    z = graph.call_method("reshape", (y, [size, -1]))
    w = graph.call_function(torch.where, (graph.call_function(operator.gt, (z, 0.0)), z, scale))
    cast = graph.call_function(aten.to.dtype, (w, torch.float64))
    part = graph.call_function(operator.getitem, (cast, (..., slice(0, 2, None))))
    graph.output((part, twice))
    return fx.GraphModule(root, graph)


def test_what_is_written_is_read_back() -> None:
    original = module()
    again = fx.GraphModule(original, read_graph(json.loads(json.dumps(write_graph(original.graph)))))
    assert again.code == original.code
    x = torch.randn(3, 4)
    assert torch.equal(again(x)[0], original(x)[0])
    assert again(x)[1] == 6


def test_names_do_not_matter_to_the_fingerprint_and_all_else_does() -> None:
    same = {fingerprint(module()), fingerprint(module("other"))}
    others = {fingerprint(module(scale=3.0)), fingerprint(module(width=5))}
    assert len(same) == 1
    assert len(same | others) == 3


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([torch.float32, torch.int64, torch.strided, torch.preserve_format, torch.device("cpu"), ...])
    | st.builds(slice, st.none() | st.integers(), st.integers()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
def test_constants_survive(value: object) -> None:
    again = read_value(json.loads(json.dumps(write_value(value))))
    assert again == value
    assert type(again) is type(value)


def test_a_tensor_among_the_arguments_is_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(aten.add.Tensor, (graph.placeholder("x"), torch.ones(1))))
    with pytest.raises(UnwritableGraph, match="Tensor"):
        write_graph(graph)


def test_a_function_from_elsewhere_is_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(json.dumps, (graph.placeholder("x"),)))
    with pytest.raises(UnwritableGraph, match="dumps"):
        write_graph(graph)


@pytest.mark.parametrize(
    "text",
    [
        '[["call_function", "a", "os.system", ["ls"], {}]]',
        '[["call_function", "a", "builtins.eval", ["1"], {}]]',
        '[["placeholder", "x", "x"]]',
        '[["placeholder", "x", "x", [{"lambda": 1}], {}]]',
        '[["placeholder", 3, "x", [], {}]]',
    ],
)
def test_text_that_is_never_written_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no node|no argument|not among"):
        read_graph(json.loads(text))
