"""What is shown of a pass: the parts that it rewrote and made, what they gained and lost, and why it refused."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mccompile.capture.part import Part
from mccompile.capture.types import Refusal
from mccompile.lowering.after import operators, show_steps
from mccompile.lowering.pipeline import Form, PassStep
from tests.lowering.refusing import MADE, TEXT, Call, X, part_of

aten = torch.ops.aten


def summing(times: int, text: bool) -> Part:
    """Adds the stream to itself so many times, and gives the text or its values too."""

    def body(call: Call, at: dict[str, fx.Node]) -> dict[object, fx.Node]:
        made = at["x"]
        for _ in range(times):
            made = call(aten.add.Tensor, (made, at["x"]))
        return {MADE: made} | ({TEXT: at["text"]} if text else {})

    return part_of({X: "x"} | ({TEXT: "text"} if text else {}), body)  # type: ignore[arg-type]


def test_a_step_shows_what_changed_and_the_graphs() -> None:
    made = part_of({X: "x"}, lambda call, at: {MADE: call(aten.neg.default, (at["x"],))})
    after = {(Form.ROWS, 1): summing(0, text=False), (Form.ONCE, 1): made}
    step = PassStep("hoist", (Form.ROWS, 1), summing(2, text=True), after, None)
    assert show_steps("hoist", "p", [step]) == f"""pass hoist, part rows 1
  - takes {TEXT}
  - gives {TEXT}
  - operator aten.add.Tensor (2 times)
  makes part once 1

def rows_1(
    x,  # {X}
):
    return (x,)

def once_1(
    x,  # {X}
):
    return (aten.neg(x),)
"""


def test_what_is_gained_stands_behind_what_is_lost() -> None:
    step = PassStep("one", (Form.PLAIN, 0), summing(0, text=False), {(Form.PLAIN, 0): summing(1, text=True)}, None)
    assert show_steps("one", "p", [step]).splitlines()[:4] == [
        "pass one, part plain 0", f"  + takes {TEXT}", f"  + gives {TEXT}", "  + operator aten.add.Tensor",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["gather", "modulated", "plain", "rows", "once", "allocate", "postlude"])
def test_a_refusal_is_told_with_its_part(form: str) -> None:
    step = PassStep("one", (Form(form), 2), summing(1, text=False), {}, Refusal("attention", "there is none"))
    assert show_steps("one", "p", [step, step]) == f"pass one, part {form} 2: refused, attention: there is none\n" * 2


def test_a_pass_that_did_nothing_was_not_asked_for() -> None:
    assert show_steps("one", "p", []) == "pass one: policy p does not ask for it\n"


def test_operators_are_functions_and_methods_in_their_order() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.neg.default, (graph.call_method("abs", (x,)),)),))
    assert operators(Part(fx.GraphModule(torch.nn.Module(), graph), (X,), (MADE,))) == ["abs", "aten.neg"]
