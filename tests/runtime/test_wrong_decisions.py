"""The laws about decisions are seen to fail: a wrong planner, a parameter that was made a constant, wrong writers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mccompile import ir
from mccompile.diagnostics.source import Source
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_policy
from mccompile.language.parse import parse
from mccompile.policy import planner
from mccompile.policy.bind import bind
from mccompile.policy.rules import Decision, Situation
from mccompile.policy.text import read, show
from tests.runtime.test_decision_oracle import DRIFT, TOKEN, Run, decided, run_of

WHOLE = ir.Cache("model", "model", "model", None, None, False)


def drifting(limit: ir.Expr) -> Run:
    rule = replace(
        TOKEN, granularity=ir.Granularity.CHUNK, condition=ir.Apply("lt", (ir.Accumulate(DRIFT), limit))
    )
    return run_of([ir.Phase("all", ir.Rest(), rule)], WHOLE, 9, 0, 5, 0.5)


def alike(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Whether the decisions of two runs are the same."""
    return all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


def test_a_planner_that_forgets_to_clear_accounts_breaks_the_law_of_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    run, own = drifting(ir.Const(0.4)), planner.after

    def after(bound: object, grid: object, before: Situation, decision: Decision, back: int) -> Iterable[Situation]:
        for found in own(bound, grid, before, decision, back):  # type: ignore[arg-type]
            yield replace(found, accounts=before.accounts) if decision.compute else found

    unfolded = decided(run, False)
    assert alike(decided(run, True), unfolded)
    monkeypatch.setattr(planner, "after", after)
    assert not alike(decided(run, True), unfolded)


def test_a_parameter_that_was_made_a_constant_breaks_the_law_of_parameters() -> None:
    """One policy under two values decides otherwise; with the value written into it, it does not."""

    def under(limit: ir.Expr, value: float) -> list[np.ndarray]:
        run = drifting(limit)
        param = ir.Param("limit", 0.6, 0.0, 9.0, False, "")
        return decided(replace(run, bound=bind(replace(run.bound.ir, params=(param,)), {"limit": value})), False)

    free, fixed = ir.ParamRef("limit"), ir.Const(0.6)
    assert not alike(under(free, 0.3), under(free, 3.0))
    assert alike(under(fixed, 0.3), under(fixed, 3.0))


def test_writers_that_change_a_word_break_the_law_of_round_trips() -> None:
    policy, tree = load_policy("teacache"), parse(find_policy("teacache"))
    assert read(show(policy)) == policy
    assert read(show(policy).replace("(lt ", "(le ")) != policy
    assert parse(Source("again", format_policy(tree))) == tree
    assert parse(Source("again", format_policy(tree).replace("0.10", "0.11"))) != tree
