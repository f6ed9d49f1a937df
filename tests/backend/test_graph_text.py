"""Graphs as text: what is written is read back, equal graphs have equal fingerprints, and odd text is refused."""

from __future__ import annotations

import json
import operator
import sys

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils import _pytree as pytree

from mccompile.backend.graph_text import UnwritableGraph, fingerprint, write_graph, write_value
from mccompile.bundles.allowed import refused_calls
from mccompile.bundles.graph_reading import read_graph, read_value
from mccompile.bundles.spec_text import read_spec

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


OUT = ["output", "out", "output", [None], {}]
X = ["placeholder", "x", "x", [], {}]
ODD = [
    [["call_function", "a", "os.system", ["ls"], {}]],
    [["call_function", "a", "builtins.eval", ["1"], {}]],
    [["call_function", "a", "torch.load", ["file.pt"], {}]],
    [["call_function", "a", "torch.hub.load", ["file.pt"], {}]],
    [["call_function", "a", "operator.methodcaller", ["save"], {}]],
    [["call_function", "a", "torch.ops.aten.from_file.default", ["/etc/passwd"], {}]],
    [["call_function", "a", "torch.ops.load_library", ["evil.so"], {}]],
    [["call_function", "a", "torch.ops.aten.__class__.mro", [], {}]],
    [["call_function", "a", "torch.ops.mccompile.prefix_attention.default", [], {}]],
    [X, ["call_method", "a", "__reduce__", [{"node": 0}], {}]],
    [X, ["call_method", "a", "share_memory_", [{"node": 0}], {}]],
    [["placeholder", "x", "x"]],
    [["placeholder", "x", "x = print(1)", [], {}]],
    [["placeholder", "x", "x", ["__import__('os')"], {}]],
    [["placeholder", "x, y", "x", [], {}]],
    [["placeholder", "lambda", "x", [], {}]],
    [["placeholder", "x", "x", [{"lambda": 1}], {}]],
    [["placeholder", 3, "x", [], {}]],
    [X, X, OUT],
    [["get_attr", "w", "w; print(1)", [], {}]],
    [["get_attr", "w", "__class__", [], {}]],
    [["get_attr", "w", "w.__class__", [], {}]],
    [X, ["call_function", "a", "torch.ops.aten.relu.default", [{"node": 0}], {"b=1, c": 1}], OUT],
    [X, ["call_function", "a", "torch.ops.aten.relu.default", [{"node": 7}], {}], OUT],
    [X, ["call_function", "a", "torch.ops.aten.relu.default", [{"torch": "load"}], {}], OUT],
    [X, ["call_function", "a", "torch.ops.aten.relu.default", [{"device": "cpu'); print(1"}], {}], OUT],
    [["root", "a", "a", [], {}]],
    [X],
    [OUT, X],
    {},
    None,
]


@pytest.mark.parametrize("entries", ODD, ids=[str(i) for i in range(len(ODD))])
def test_text_that_is_never_written_is_refused(entries: object) -> None:
    with pytest.raises(ValueError, match=r"no |not among|after the output|without an output"):
        read_graph(json.loads(json.dumps(entries)))


def test_the_value_of_a_deep_list_is_refused() -> None:
    deep: object = 1
    for _ in range(50):
        deep = [deep]
    with pytest.raises(ValueError, match="lists in lists"):
        read_value(deep)  # type: ignore[arg-type]


def test_what_the_list_does_not_have_is_found_before_it_is_written() -> None:
    assert refused_calls(module().graph) == []
    graph = fx.Graph()
    graph.call_method("share_memory_", (graph.placeholder("x"),))
    graph.call_function(aten.set_.default, (graph.placeholder("y"),))
    assert refused_calls(graph) == ["the method share_memory_", "the operator aten.set_.default"]


SPECS = [
    pytree.tree_structure(((1,), {"a": 1, "b": [1, (2,)]})),
    pytree.tree_structure(Transformer2DModelOutput(sample=torch.ones(1))),
]


@pytest.mark.parametrize("spec", SPECS)
def test_structures_survive(spec: pytree.TreeSpec) -> None:
    assert read_spec(pytree.treespec_dumps(spec)) == spec


LEAF: dict[str, object] = {"type": None, "context": None, "children_spec": []}
ENUM = json.dumps([{"__enum__": True, "fqn": "antigravity:Gravity", "name": "OFF"}])


@pytest.mark.parametrize(
    "tree",
    [
        {"type": "builtins.dict", "context": ENUM, "children_spec": [LEAF]},
        {"type": "os.system", "context": "null", "children_spec": []},
        {"type": "collections.namedtuple", "context": "null", "children_spec": []},
        {"type": "builtins.dict", "context": '["a"]', "children_spec": [LEAF, LEAF]},
        {"type": "builtins.tuple", "context": "null"},
        [],
    ],
)
def test_a_structure_that_names_modules_is_refused(tree: object) -> None:
    with pytest.raises(ValueError, match="no structure"):
        read_spec(json.dumps([1, tree]))
    assert "antigravity" not in sys.modules
