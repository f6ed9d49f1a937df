"""What the spec of parts lets through and what it does not: every sort of operand and result, in every form."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import fx

from mccompile.capture.part import (
    Additive,
    AttentionSite,
    Buffer,
    Filled,
    Hoisted,
    Index,
    Input,
    Modulated,
    Operand,
    Output,
    Part,
    PerSelection,
    Pick,
    Positions,
    Result,
    RowSource,
    Shared,
    Stream,
    TakenFrom,
    Weight,
)
from mccompile.lowering.pipeline import Form, Pieces
from mccompile.lowering.spec import broken
from tests.lowering.refusing import MADE, K, X, masked, part_of, sdpa

aten = torch.ops.aten
At = dict[str, fx.Node]
Call = Callable[..., fx.Node]
BOUNDS = PerSelection("bounds", lambda rows, seen: torch.zeros(0))
TAKEN = (X, Shared("mask"), Additive("mask"), RowSource("rows"), Index(), Positions("video"), Filled(), TakenFrom(), K,
         Weight("w"), BOUNDS, Pick("m"), Hoisted(0, True), Input("latent"))  # fmt: skip
GIVEN: tuple[Result, ...] = (
    MADE,
    Shared("mask"),
    Positions("video"),
    Pick("m"),
    K,
    Hoisted(0, True),
    Modulated(),
    Output(0),
)
MAY_TAKE: dict[Form, str] = {
    Form.GATHER: "Index RowSource", Form.MODULATED: "Stream Shared Weight",
    Form.PLAIN: "Stream Shared Additive Buffer Weight",
    Form.ROWS: "Stream Shared RowSource Positions Filled TakenFrom Buffer Weight PerSelection Pick Hoisted",
    Form.ONCE: "Shared Weight", Form.ALLOCATE: "Stream Shared", Form.POSTLUDE: "Stream Shared Input",
}  # fmt: skip
MAY_GIVE: dict[Form, str] = {
    Form.GATHER: "Shared Positions Pick", Form.MODULATED: "Modulated", Form.PLAIN: "Stream", Form.ROWS: "Stream",
    Form.ONCE: "Hoisted", Form.ALLOCATE: "Buffer", Form.POSTLUDE: "Output",
}  # fmt: skip


def pieces(**facts: Any) -> Pieces:
    """Of a model whose blocks take `x`, `mask`, `w` and keep `k`, with one value that blocks pick themselves, `m`."""
    kind = SimpleNamespace(
        full=SimpleNamespace(takes=(X, Shared("mask"), Weight("w"))), buffers=(SimpleNamespace(name="k"),)
    )
    usual = {
        "kinds": (kind, SimpleNamespace(full=SimpleNamespace(takes=()), buffers=())), "inputs": ("latent",),
        "exit": ("x",), "shared": (SimpleNamespace(name="mask"),), "sources": (SimpleNamespace(name="rows"),),
        "row_keys": ("3+video",),
    }  # fmt: skip
    once = SimpleNamespace(gives=(Hoisted(0, True),))
    made = {"coarse": (SimpleNamespace(name="m"),), "parts": {(Form.ONCE, 0): once}}
    return cast(Pieces, SimpleNamespace(captured=SimpleNamespace(**usual), **(made | facts)))


def taking(operand: Operand, gives: Result = MADE) -> Part:
    return part_of({operand: "taken"}, lambda call, at: {gives: at["taken"]})


def rules(form: Form, part: Part, kind: int = 0) -> list[str]:
    return [rule for _, rule in broken((form, kind), part, pieces())]


OWN: dict[Form, Result] = {
    Form.GATHER: Pick("m"), Form.MODULATED: Modulated(), Form.PLAIN: MADE, Form.ROWS: MADE, Form.ONCE: Hoisted(0, True),
    Form.ALLOCATE: K, Form.POSTLUDE: Output(0),
}  # fmt: skip


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("operand", TAKEN, ids=str)
def test_a_part_takes_the_sorts_of_its_form(form: Form, operand: Operand) -> None:
    may = type(operand).__name__ in MAY_TAKE[form].split()
    assert rules(form, taking(operand, OWN[form])) == ([] if may else [f"a {form} part takes no {operand}"])


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("result", GIVEN, ids=str)
def test_a_part_gives_the_sorts_of_its_form(form: Form, result: Result) -> None:
    operand: Operand = {Form.GATHER: Index(), Form.ONCE: Weight("w")}.get(form, X)  # type: ignore[arg-type]
    may = type(result).__name__ in MAY_GIVE[form].split()
    wrong = [("output", f"a {form} part gives no {result}")]
    assert list(broken((form, 0), taking(operand, result), pieces())) == ([] if may else wrong)


MISSING: tuple[tuple[Form, Operand, int], ...] = (
    (Form.PLAIN, Stream("y"), 0), (Form.PLAIN, X, 1), (Form.POSTLUDE, Stream("y"), 0), (Form.POSTLUDE, Shared("y"), 0),
    (Form.POSTLUDE, Input("y"), 0), (Form.ROWS, Shared("y"), 0), (Form.ROWS, Shared("mask"), 1),
    (Form.PLAIN, Additive("y"), 0), (Form.PLAIN, Additive("mask"), 1), (Form.ROWS, RowSource("y"), 0),
    (Form.ROWS, Positions("5+video"), 0), (Form.ROWS, Buffer("y"), 0), (Form.ROWS, K, 1), (Form.ROWS, Weight("y"), 0),
    (Form.ROWS, Weight("w"), 1), (Form.ROWS, Pick("y"), 0), (Form.ROWS, Hoisted(1, True), 0),
    (Form.ROWS, Hoisted(0, True), 1),
)  # fmt: skip


@pytest.mark.parametrize(("form", "operand", "kind"), MISSING)
def test_what_a_part_takes_is_in_the_model(form: Form, operand: Operand, kind: int) -> None:
    assert rules(form, taking(operand, OWN[form]), kind) == [f"{operand} does not exist in the model"]


def test_positions_of_other_rows_are_those_that_the_model_knows() -> None:
    assert rules(Form.ROWS, taking(Positions("3+video"))) == []


def named(part: Part, form: Form = Form.PLAIN) -> list[tuple[str, str]]:
    return [(node, rule.split(":")[0]) for node, rule in broken((form, 0), part, pieces())]


def graph_of(takes: tuple[Operand, ...], gives: tuple[Result, ...], holders: int, returned: Any) -> Part:
    graph = fx.Graph()
    nodes = [graph.placeholder(f"p{i}") for i in range(holders)]
    graph.output(returned(nodes))
    return Part(fx.GraphModule(torch.nn.Module(), graph), takes, gives)


HOLDERS = "placeholders are the operands that the part takes, one each"
OUTPUTS = "outputs are the results that the part gives, one each"


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (graph_of((X,), (MADE,), 2, tuple), [("p0, p1", HOLDERS)]),
        (graph_of((X, X), (MADE, X), 2, tuple), [("p0, p1", HOLDERS)]),
        (graph_of((X,), (MADE, X), 1, tuple), [("output", OUTPUTS)]),
        (graph_of((X,), (MADE, MADE), 1, lambda nodes: (*nodes, *nodes)), [("output", OUTPUTS)]),
        (graph_of((X,), (MADE,), 1, lambda nodes: nodes[0]), [("output", OUTPUTS)]),
        (graph_of((X,), (MADE,), 1, list), []),
    ],
)
def test_each_operand_and_each_result_has_one_place(part: Part, found: list[tuple[str, str]]) -> None:
    assert named(part) == found


def writing(target: Callable[[Call, At], fx.Node]) -> Part:
    def body(call: Call, at: At) -> dict[Result, fx.Node]:
        call(aten.copy_.default, (target(call, at), at["x"]))
        return {MADE: at["x"]}

    return part_of({X: "x", K: "k"}, body)


def view(call: Call, of: fx.Node) -> fx.Node:
    return call(aten.select.int, (call(aten.transpose.int, (of, 0, 1)), 0, 0))


WRITES = "writes go to buffers, or to what the graph itself has made"
TARGETS: dict[str, tuple[Callable[[Call, At], fx.Node], bool]] = {
    "a stream": (lambda call, at: at["x"], False),
    "a view of a stream": (lambda call, at: view(call, at["x"]), False),
    "what was written to a view of a stream": (
        lambda call, at: view(call, call(aten.copy_.default, (view(call, at["x"]), at["k"]))), False,
    ),
    "a buffer": (lambda call, at: at["k"], True),
    "a view of a buffer": (lambda call, at: view(call, at["k"]), True),
    "a copy of a stream": (lambda call, at: view(call, call(aten.neg.default, (at["x"],))), True),
}  # fmt: skip


@pytest.mark.parametrize("how", TARGETS)
def test_writes_go_to_what_is_the_parts_own(how: str) -> None:
    target, fine = TARGETS[how]
    found = named(writing(target))
    assert found == ([] if fine else [(found[0][0], WRITES)])
    assert fine or found[0][0].startswith("copy_")


@pytest.mark.parametrize(("node", "fine"), [("scaled_dot_product_attention_default", True), ("x", False), ("y", False)])
def test_sites_of_attention_are_operators_that_attend(node: str, fine: bool) -> None:
    part = masked()
    (attends,) = part.graph.find_nodes(op="call_function", target=sdpa)
    assert attends.name == "scaled_dot_product_attention_default"
    site = AttentionSite(node, "attn", K, K, None)
    wrong = Part(part.module, part.takes, part.gives, (*part.attentions, site))
    assert named(wrong) == ([] if fine else [(node, "attentions stand in the graph")])
