"""What decisions are made by, and what is no number among it: told, and computed."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest
import torch

from mccompile import ir
from mccompile.arithmetic.fitted import Fitted
from mccompile.lowering.decide import build_decide
from mccompile.lowering.measured import MeasuredRow
from mccompile.runtime.decided import Decided, Spread, fits_outside, guards, spreads
from mccompile.runtime.finite import finite
from tests.runtime.test_decision_oracle import EACH, LOCATED, MOVED, TOKEN, Run, decided, run_of

C = ir.Const
WHOLE = ir.Cache("model", "model", "model", None, None, False)


def of(rule: ir.Rule, odd: float | None = None, row: int = 4) -> Run:
    """A run of one rule; odd: what one value of the first sample's second chunk is in that row."""
    run = run_of([ir.Phase("all", ir.Rest(), rule)], WHOLE, 9, 0, 5, 0.5)
    if odd is not None:
        run.latent[row][0, 1, 0, 0, 0] = odd
    return run


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", ["reuse token", "reuse frame", "reuse chunk", "hold", "vote", "of tokens", "top"])
def test_a_cell_whose_signal_is_no_number_is_computed(name: str, value: float, fold: bool) -> None:
    """Whatever the guards say; the cells of other chunks and samples are decided as if nothing had been."""
    plain, odd = decided(of(EACH[name]), fold), decided(of(EACH[name], value), fold)
    for row in (4, 5):  # the value comes, and is what the next step's is compared with
        assert odd[row][0, 1, 0, 0]
    for one, other in zip(plain, odd, strict=True):
        assert (one[1] == other[1]).all()
        assert (one[0, 0] == other[0, 0]).all()
    assert all((a == b).all() for a, b in zip(plain[:4], odd[:4], strict=True))


def test_no_decision_after_the_next_rests_on_it() -> None:
    """Two steps after the value came, accounts are numbers again, and tokens are reused."""
    odd = decided(of(TOKEN, nan, row=1), fold=True)
    assert not all(mask[0, 1, 0, 0] for mask in odd[3:])


def test_what_is_told_of_a_rule() -> None:
    """Its account, its signals, its fits with what they are fitted to, and its guards, each once."""
    moved = MOVED["step", ir.Granularity.CHUNK]
    fit = ir.Polynomial(moved, (2.0, -1.0))
    rule = replace(TOKEN, condition=ir.Apply("lt", (ir.Accumulate(fit), C(0.5))), max_consecutive=C(2.0), vote=C(0.5))
    spec = build_decide(of(rule).bound.ir, LOCATED, frozenset())
    assert spec is not None
    assert spec.measured == (
        MeasuredRow("highest"), MeasuredRow("lowest"), MeasuredRow("fit", "", fit), MeasuredRow("fitted", "", fit),
        MeasuredRow("guard", "vote"), MeasuredRow("guard", "at most in a row"),
    )  # fmt: skip


def test_fits_and_accounts_below_zero_are_told_with_figures() -> None:
    fit = ir.Polynomial(MOVED["step", ir.Granularity.CHUNK], (2.0, -1.0))

    def one(step: int, argument: float, account: float) -> Decided:
        values = {
            MeasuredRow("lowest"): account,
            MeasuredRow("fit", "", fit): 2 * argument - 1,
            MeasuredRow("fitted", "", fit): argument,
        }
        return Decided(step, values)

    assert list(fits_outside([one(3, 0.9, 0.8)])) == []
    outside, account = fits_outside([one(3, 0.9, 0.8), one(4, 0.1, 0.0), one(5, 0.05, -0.9)])
    assert outside.startswith("a polynomial is used outside of its domain: it gives a negative distance at 2 of 3")
    assert "(-0.9 for 0.05 at step 5)" in outside
    assert account.startswith("the account was negative at 1 of 3 decisions (down to -0.9)")


def test_percentiles_are_of_the_finite_values() -> None:
    assert Spread.of([nan, inf]) is None
    assert Spread.of([*range(101), nan]) == Spread(101, 10.0, 50.0, 90.0)


@pytest.mark.parametrize(("value", "is_finite"), [(0.0, True), (nan, False), (inf, False), (-inf, False)])
def test_results_are_looked_at(value: float, is_finite: bool) -> None:
    results = torch.zeros(3), torch.tensor([1.0, value]), torch.tensor([1]), 7
    found = finite(results, ())
    assert found is not None
    assert bool(*found.arrived()) == is_finite
    returned = finite(results, [results[1]])  # as it was given
    assert returned is not None
    assert bool(*returned.arrived())
    assert finite((torch.tensor([1]),), ()) is None


def test_spreads_are_of_signals_and_accounts_by_their_names() -> None:
    account, named, signal = MeasuredRow("highest"), MeasuredRow("highest", "sum"), MeasuredRow("signal", "drift")
    other = {MeasuredRow("lowest"): 9.0, MeasuredRow("guard", "vote"): 9.0, MeasuredRow("fitted", "drift"): 9.0}
    decided = [Decided(step, {account: v, named: v + 1, signal: v + 2, **other}) for step, v in enumerate((1.0, 3.0))]
    decided.append(Decided(2, {MeasuredRow("signal", "odd"): nan}))
    found = spreads(decided)
    assert list(found) == ["account", "account sum", "drift"]
    assert [(one.count, round(one.middle, 6)) for one in found.values()] == [(2, 2.0), (2, 3.0), (2, 4.0)]
    assert str(Spread(3, 0.12345, 2.0, 1234.5)) == "0.123 / 2 / 1.23e+03 (3)"
    assert [one.finite for one in decided] == [True, True, False]


def test_guards_are_counted_where_they_acted() -> None:
    vote, hold = MeasuredRow("guard", "vote"), MeasuredRow("guard", "hold")
    decided = [Decided(0, {vote: 1.0, hold: 0.0, MeasuredRow("highest"): 5.0}), Decided(1, {vote: 1.0})]
    assert guards([*decided, Decided(2, {vote: 0.0})]) == {"vote": 2, "hold": 0}


def test_a_fit_that_saw_no_such_values_is_told_of_the_decisions_that_asked_it() -> None:
    argument = MOVED["step", ir.Granularity.CHUNK]
    fit = ir.Polynomial(argument, (1.0, 0.0), origin=Fitted("known", (0.0, 1.0), (0.0, 0.5)))
    gave, of = MeasuredRow("fit", "", fit), MeasuredRow("fitted", "", fit)
    asked = [Decided(4, {gave: 0.5, of: 0.5}), Decided(7, {gave: 0.0, of: 0.75})]
    (told,) = fits_outside([*asked, Decided(8, {MeasuredRow("lowest"): 0.0})])
    assert told.startswith("polynomial known is used beyond what it was fitted on at 1 of 2 decisions (0.75 at step 7;")
    (negative,) = fits_outside([*asked, Decided(9, {gave: -0.25, of: 0.1})])
    assert "a negative distance at 1 of 3 decisions (-0.25 for 0.1 at step 9)" in negative
    (account,) = fits_outside([Decided(1, {MeasuredRow("lowest"): v}) for v in (0.5, -0.5, -2.0)])
    assert account.startswith("the account was negative at 2 of 3 decisions (down to -2)")
