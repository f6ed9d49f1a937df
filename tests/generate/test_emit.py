"""The text of a lowered model runs, and computes what the graphs compute (law 7 for the last stage)."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable

import pytest
import torch
from torch import fx

from mccompile.capture.part import attribute
from mccompile.capture.types import Refusal
from mccompile.language.load import load_policy
from mccompile.lowering import emit
from mccompile.lowering.lower import lower
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import bind
from mccompile.runtime.engine import Engine
from mccompile.runtime.exercise import exercise
from tests.generate.conftest import Small


class Weights:
    """Tensors of a module by qualified name."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def __getitem__(self, name: str) -> object:
        return attribute(self.module, name)


def written(lowered: LoweredModel) -> dict[str, object]:
    """The functions of the emitted text."""
    names: dict[str, object] = {}
    exec(compile(emit.emit(lowered), "lowered.py", "exec"), names)
    return names


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["motioncache", "compute"])
def test_the_text_computes_what_the_graphs_compute(policy: str, small: Small) -> None:
    ir = load_policy(policy)
    lowered = lower(small.captured.model, ir, small.captured.prefixes, fold=policy != "motioncache")
    functions, compared = written(lowered), set()
    modules = {id(f[1]): f for f in emit.graphs(lowered)}

    def comparing(module: fx.GraphModule, role: str):  # type: ignore[no-untyped-def]
        if id(module) not in modules:
            return module.forward
        name, _, _ = modules[id(module)]

        def run(*arguments: object) -> tuple[object, ...]:
            copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
            weights = {"weights": Weights(module)} if emit.function(name, "", module).weights else {}
            found = functions[name](*copies, **weights)  # type: ignore[operator]
            results = module.forward(*arguments)
            assert len(found) == len(results)
            assert all(map(same, found, results))
            assert all(map(same, copies, arguments))  # buffers were written alike
            compared.add(name)
            return results

        return run

    exercise(Engine(lowered, comparing), bind(ir, {}), small.captured.calls)
    block = "block0_plain" if policy == "compute" else "block0_partial"
    expected = {block} | ({"decide"} if any(lowered.decides.values()) else set())
    expected |= {"observe"} if lowered.observe else set()
    assert expected <= compared
    inputs = list(small.captured.calls[0].values())
    with torch.no_grad():
        prelude = functions["prelude"](*inputs, weights=Weights(lowered.captured.prelude.module))  # type: ignore[operator]
        assert all(map(same, prelude, lowered.captured.prelude(*inputs)))


def test_the_text_is_the_same_every_time(small: Small) -> None:
    ir = load_policy("motioncache")
    texts = {emit.emit(lower(small.captured.model, ir, small.captured.prefixes)) for _ in range(2)}
    assert len(texts) == 1
    (text,) = texts
    assert text.count("def block0_partial(") == text.count("def decide(") == text.count("def observe(") == 1
    assert "blocks 0..5: decided by the policy, keep residual" in text
    assert "known before the first frame: modulation" in text
    assert not re.search(r'^ +\w+ = weights\["[^"]*"\]$', text, re.MULTILINE)  # they are named where they are used


def test_refusals_are_in_the_text(small: Small) -> None:
    lowered = lower(small.captured.model, load_policy("exact"), small.captured.prefixes)
    refused = dataclasses.replace(lowered, refusals=(Refusal("conv_1", "mixes tokens"),))
    assert "refused conv_1: mixes tokens" in emit.emit(refused)


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.register_buffer("scale", torch.tensor(3.0))


def graph_of(build: Callable[[fx.Graph, fx.Node], object]) -> fx.GraphModule:
    graph = fx.Graph()
    made = build(graph, graph.placeholder("x"))
    graph.output((made,))
    return fx.GraphModule(Named(), graph)


def twice(g: fx.Graph, x: fx.Node) -> fx.Node:
    y = g.call_function(operator.add, (x, 1))
    return g.call_function(operator.mul, (y, g.call_function(operator.neg, (y,))))


OPERATORS: dict[str, tuple[Callable[[fx.Graph, fx.Node], object], str]] = {
    "a slice": (lambda g, x: g.call_function(operator.getitem, (x, slice(1, None))), "x[1:]"),
    "a slice to an end": (lambda g, x: g.call_function(operator.getitem, (x, slice(None, 2))), "x[:2]"),
    "a slice with a step": (lambda g, x: g.call_function(operator.getitem, (x, slice(0, 3, 2))), "x[0:3:2]"),
    "slices of several axes": (
        lambda g, x: g.call_function(operator.getitem, (x, (slice(None), 1, None))), "x[:, 1, None]",
    ),
    "an entry": (lambda g, x: g.call_function(operator.getitem, (x, -1)), "x[-1]"),
    "an infinite number": (lambda g, x: g.call_function(operator.add, (x, float("-inf"))), 'x + (float("-inf"))'),
    "no number": (lambda g, x: g.call_function(torch.ops.aten.fill.Scalar, (x, float("nan"))),
                  'aten.fill.Scalar(x, float("nan"))'),
    "a device": (
        lambda g, x: g.call_function(torch.ops.aten.to.device, (x, torch.device("cpu"))),
        'aten.to.device(x, torch.device("cpu"))',
    ),
    "a list": (lambda g, x: g.call_function(torch.ops.aten.cat.default, ([x, x], 1)), "aten.cat([x, x], 1)"),
    "one entry of a tuple": (lambda g, x: g.call_function(torch.ops.aten.permute.default, (x, (0,))),
                             "aten.permute(x, (0,))"),
    "two entries of a tuple": (lambda g, x: g.call_function(torch.ops.aten.permute.default, (x, (1, 0))),
                               "aten.permute(x, (1, 0))"),
    "a named argument": (lambda g, x: g.call_function(torch.ops.aten.add.Tensor, (x, 1), {"alpha": 2}),
                         "aten.add.Tensor(x, 1, alpha=2)"),
    "a method": (lambda g, x: g.call_method("sum", (x, 0), {"keepdim": True}), "x.sum(0, keepdim=True)"),
    "a method of a sum": (lambda g, x: g.call_method("abs", (g.call_function(operator.add, (x, 1)),)), "(x + 1).abs()"),
    "an operator in front": (lambda g, x: g.call_function(operator.neg, (x,)), "-x"),
    "in front of a sum": (
        lambda g, x: g.call_function(operator.neg, (g.call_function(operator.add, (x, 1)),)), "-(x + 1)",
    ),
    "a weight": (lambda g, x: g.call_function(operator.mul, (x, g.get_attr("inner.scale"))),
                 'x * weights["inner.scale"]'),
    "a function": (lambda g, x: g.call_function(torch.nn.functional.relu, (x,)), "torch.nn.functional.relu(x)"),
    "a value that is read twice": (twice, "add * (-add)"),
}  # fmt: skip


@pytest.mark.parametrize("how", OPERATORS)
def test_an_operator_is_written_as_python_reads_it(how: str) -> None:
    build, text = OPERATORS[how]
    module = graph_of(build)
    function = emit.function("f", "", module)
    assert function.parameters == ("x",)
    assert function.weights == ("weights" in text)
    assert (function.result, function.lines) == (f"({text},)", ("add = x + 1",) if "twice" in how else ())


def test_what_writes_stands_in_a_line_of_its_own() -> None:
    """Nothing moves past it, so that what is read before it is read before it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    before = graph.call_function(operator.add, (x, 1))
    graph.call_function(torch.ops.aten.copy_.default, (x, before))
    graph.output((graph.call_function(operator.add, (x, before)),))
    function = emit.function("f", "", fx.GraphModule(torch.nn.Module(), graph))
    assert function.lines == ("add = x + 1", "aten.copy_(x, add)", "add_1 = x + add")
    assert function.result == "(add_1,)"


@pytest.mark.parametrize(("width", "inline"), [(48, True), (49, False)])
def test_short_values_are_written_where_they_are_used(width: int, inline: bool) -> None:
    name = "x" * (width - 4)
    graph = fx.Graph()
    graph.output((graph.call_function(operator.add, (graph.placeholder(name), 1)),))
    function = emit.function("f", "", fx.GraphModule(torch.nn.Module(), graph))
    assert function.result == (f"({name} + 1,)" if inline else "(add,)")


@pytest.mark.parametrize(
    ("group", "words"),
    [("", ""), ("front", " in the regions `front`"), ("uncond", " of `uncond`"),
     ("uncond front", " of `uncond` in the regions `front`"), ("two words", " in the regions `two words`")],
)  # fmt: skip
def test_a_view_is_named_by_its_branch_and_regions(group: str, words: str) -> None:
    assert emit.of_group(group) == words
