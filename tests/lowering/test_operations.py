"""One table of operations: checker, planner, readers and graphs all know an operation by its row."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.arithmetic.interval import Interval
from mccompile.arithmetic.operations import OPERATIONS, Operation, Operator
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language.builtins import FUNCTIONS, Function, Parameter
from mccompile.language.load import load_policy
from mccompile.lowering.decide import build_decide
from mccompile.lowering.expressions import Leaves
from mccompile.lowering.expressions import evaluate as evaluate_tensor
from mccompile.lowering.operations import TENSORS
from mccompile.lowering.trace_fx import build_graph
from mccompile.policy.evaluate import StaticMoment, evaluate
from mccompile.policy.text import read, show

C = ir.Const
POLICY = """policy p {
  param limit = 0.5 in 0.25..1
  phase all { reuse chunk while sign(sigma - limit) < 0.5 }
  layers blocks[*] { keep residual }
}
"""


def test_every_operation_has_a_meaning_on_tensors() -> None:
    assert set(OPERATIONS) == set(get_args(Operator)) == set(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_an_operation_can_be_traced(name: str) -> None:
    """A decision graph is traced with proxies in place of tensors."""
    row, fn = OPERATIONS[name], TENSORS[name]
    truth = name in ("and", "or", "not")
    given = [torch.tensor(truth) if truth else torch.tensor(0.3 + i) for i in range(len(row.operands))]
    names = [f"a{i}" for i in range(len(given))]
    graph = build_graph(names, lambda of: {"out": fn(*of.values())}, ("out",))
    assert torch.equal(graph(*given)[0], fn(*given))


def test_a_new_operation_is_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the text of a policy to its graph: nothing but the two rows knows the operation."""

    def bounds(a: Interval) -> Interval:
        return Interval(float(np.sign(a.low)), float(np.sign(a.high)))

    row = Operation(("of",), lambda a: np.float32(np.sign(a)), bounds, duty="-1, 0 or 1")
    monkeypatch.setitem(OPERATIONS, "sign", row)  # type: ignore[arg-type]
    monkeypatch.setitem(TENSORS, "sign", torch.sign)  # type: ignore[arg-type]
    monkeypatch.setitem(FUNCTIONS, "sign", Function("sign", (Parameter("of", "number"),), row.duty))
    policy = load_policy(Source("p.policy", POLICY))
    assert read(show(policy)) == policy
    spec = build_decide(policy, {}, frozenset())
    assert spec is not None
    assert "sign" in spec.module.code
    rule = policy.phases[0].rule
    assert isinstance(rule, ir.Reuse)
    assert isinstance(rule.condition, ir.Apply)
    value = rule.condition.args[0]
    assert isinstance(value, ir.Apply)
    moment = StaticMoment({"limit": np.float32(2)}, {}, None, 0, {}, None)
    assert evaluate(ir.Apply(value.op, (ir.ParamRef("limit"),)), moment) == 1
    with pytest.raises(PolicyError, match="MC0238"):
        load_policy(Source("p.policy", POLICY.replace("0.5 }", "1.5 }")))


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [(3.0, 2.0, 1.0), (4.0, 2.0, 0.0), (-4.0, 2.0, 0.0), (5.5, 2.0, 1.5), (-3.0, 2.0, 1.0)]
)
def test_what_a_division_leaves_is_exact_and_0_has_no_sign(a: float, b: float, wanted: float) -> None:
    found = TENSORS["remainder"](torch.tensor(a), torch.tensor(b))
    assert found.dtype == torch.float32
    assert (found.item(), torch.signbit(found).item()) == (wanted, False)


def number(expr: ir.Expr) -> float | bool:
    """The value of literals alone in a graph."""
    found = evaluate_tensor(expr, Leaves({}, {}, {}, {}, {}, {}, {}, {}))
    return found.item() if isinstance(found, torch.Tensor) else found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "expr",
    [
        ir.Apply("add", (C(0.1), C(0.6))),
        ir.Apply("mul", (C(0.1), C(0.1))),
        ir.Apply("sqrt", (C(0.1),)),
        ir.Apply("min", (C(0.1), C(0.2))),
        ir.Polynomial(C(0.1), (0.3, 0.7, 0.1)),
        ir.Apply("not", (ir.Apply("lt", (C(2.0), C(1.0))),)),
        ir.Apply("and", (ir.Apply("lt", (C(1.0), C(2.0))), ir.Apply("lt", (C(2.0), C(3.0))))),
        ir.Apply("or", (ir.Apply("lt", (C(1.0), C(2.0))), ir.Apply("lt", (C(3.0), C(2.0))))),
    ],
)
def test_literals_alone_are_rounded_as_the_planner_rounds_them(expr: ir.Expr) -> None:
    """0.1 + 0.6 is 0.70000005 in float32 and 0.7 in float64: a threshold of literals must be one number in both."""
    ours = evaluate(expr, StaticMoment({}, {}, None, 0, {}, None))
    theirs = number(expr)
    assert theirs == float(ours)
    assert isinstance(theirs, bool) == isinstance(ours, bool)
