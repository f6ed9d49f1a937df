"""What errors of lowering tell that no smaller test raises: refusals that were to be fatal, and budgets."""

from __future__ import annotations

from mccompile import ir
from mccompile.lowering.errors import BudgetUnmet, DeniedRefusals


def test_each_refusal_has_its_line() -> None:
    error = DeniedRefusals(("conv: it mixes tokens", "norm: so does this"))
    (told,) = error.diagnostics
    assert (told.code, told.span) == ("MC0503", None)
    assert told.message().splitlines()[1:] == ["  conv: it mixes tokens", "  norm: so does this"]


def test_a_budget_is_told_beside_what_would_be_kept() -> None:
    error = BudgetUnmet("p", ir.Cache("auto", "auto", "auto", 1000, None, False), 2_000_000, "residuals in float8")
    (told,) = error.diagnostics
    assert told.code == "MC0504"
    assert told.message() == (
        "policy `p` may keep 1,000 bytes, and would keep at least 2,000,000 (residuals in float8)"
    )
