"""Fits outside of their domain, changes that are no numbers, and thresholds without influence are told with figures."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from policy_cases import MODULATION, MOTION, STATIC, WAN, below, grid_of, policy, rest, reuse

from mccompile import ir
from mccompile.arithmetic.fitted import Fitted
from mccompile.language.coefficients import CoefficientSet, coefficient_sets
from mccompile.language.load import load_policy
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.evaluate import horner, static_changes
from mccompile.policy.influence import BEYOND, beyond, fits_of, negative_fit, origin_of, without_influence
from mccompile.policy.planner import Plan, plan

FITS = [s for s in coefficient_sets().values() if s.kind == "polynomial"]


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.name)
def test_the_domain_of_a_fit_is_where_it_is_a_distance(fit: CoefficientSet) -> None:
    """Not negative inside, negative just outside: a set without a domain is a distance on all of 0..1.

    The domain of a calibrated set ends with what it was fitted on, or earlier.
    """
    low, high = fit.domain or (0.0, 1.0)
    inside = [float(horner(np.float32(x), fit.values)) for x in np.linspace(low, high, 400)]
    assert min(inside) >= 0
    if fit.fitted is not None:
        assert high <= fit.fitted[1]
        return
    outside = [x for x in (low - 2e-4, high + 2e-4) if 0 <= x <= 1]
    assert all(horner(np.float32(x), fit.values) < 0 for x in outside)


def planned(name: str, drift: tuple[float, ...], **values: float) -> tuple[Plan, list[str]]:
    """The plan of a shipped policy whose source moves so far at each step, and what has no influence on it."""
    bound = bind(load_policy(name), values)
    grid, tables = grid_of(len(drift)), dict.fromkeys(static_changes(bound.ir, STATIC), drift)

    def made(other: BoundPolicy) -> Plan:
        return plan(other, grid, tables, STATIC)

    return made(bound), list(without_influence(bound, made(bound), made))


def test_a_negative_fit_is_told_and_so_is_the_threshold_that_it_leaves_without_influence() -> None:
    made, idle = planned("teacache", (0.0, *[0.02] * 4, *[0.001] * 15), warmup=5)
    (fit,) = [n for n in made.notes if "domain" in n]
    assert "polynomial wan2.1_1.3b_ret is used outside of its domain" in fit
    assert "negative distance at 15 of 15 steps (-0.0368 for 0.001 at step 5), and is none from 0.0044 to 0.1019" in fit
    assert "fit it for this model and number of steps" in fit
    assert idle == ["parameter threshold has no influence: the same steps are computed from 0.01 to 0.5"]


@pytest.mark.parametrize("op", ["lt", "le", "gt", "ge"])
def test_a_threshold_without_influence_is_told_of_every_comparison(op: str) -> None:
    """And one that decides is not: the source moves by more than its lowest value and by less than its highest one."""
    sides = (MODULATION, ir.ParamRef("limit")) if op in ("lt", "le") else (ir.ParamRef("limit"), MODULATION)
    limit = ir.Param("limit", 0.3, 0.1, 0.5, False, "")
    bound = bind(policy(rest(reuse(ir.Apply(op, sides))), params=(limit,)), {})  # type: ignore[arg-type]

    def idle(drift: float) -> list[str]:
        def made(other: BoundPolicy) -> Plan:
            return plan(other, grid_of(6), {MODULATION: (drift,) * 6}, STATIC)

        return list(without_influence(bound, made(bound), made))

    told = ["parameter limit has no influence: the same steps are computed from 0.1 to 0.5"]
    assert (idle(0.01), idle(0.2), idle(0.9)) == (told, [], told)


def test_nothing_is_said_of_a_threshold_where_data_decides() -> None:
    limit = ir.Param("limit", 0.3, 0.1, 0.5, False, "")
    bound = bind(policy(rest(reuse(below(MOTION, ir.ParamRef("limit")))), params=(limit,)), {})

    def made(other: BoundPolicy) -> Plan:
        return plan(other, grid_of(6), {}, STATIC)

    assert {cell.action for cell in made(bound).cells} == {"compute", "dynamic"}
    assert list(without_influence(bound, made(bound), made)) == []


def test_where_a_fit_holds_is_told_if_it_is_known() -> None:
    values = [("step 1", 0.5, -1.0), ("step 2", 0.25, -2.0)]
    nameless = Fitted("", None, None)
    origins = {None: "a polynomial", nameless: "a polynomial", Fitted("own", None, None): "polynomial own"}
    for origin, name in origins.items():
        told = negative_fit(ir.Polynomial(MOTION, (1.0, 0.5), origin=origin), values, "4 steps")
        assert told.startswith(f"{name} is used outside of its domain: it gives a negative distance at 2 of 4 steps ")
        assert "(-2 for 0.25 at step 2); " in told
    known = ir.Polynomial(MOTION, (1.0, 0.5), origin=Fitted("own", (0.0, 0.5), None))
    assert "at step 2), and is none from 0 to 0.5 only; " in negative_fit(known, values, "4 steps")


def test_a_fit_is_told_behind_one_that_only_the_run_knows() -> None:
    policy = load_policy("teacache")
    rule = policy.phases[1].rule
    assert isinstance(rule, ir.Reuse)
    measured = ir.Apply("lt", (ir.Polynomial(MOTION, WAN), ir.Const(0.5)))
    rule = replace(rule, condition=ir.Apply("and", (measured, rule.condition)))
    bound = bind(replace(policy, phases=(policy.phases[0], replace(policy.phases[1], rule=rule))), {})
    tables = dict.fromkeys(static_changes(bound.ir, STATIC), (0.0, *[0.001] * 19))
    assert len(fits_of(bound.ir)) == 2
    assert any("outside of its domain" in note for note in plan(bound, grid_of(20), tables, STATIC).notes)


def test_a_fit_inside_of_its_domain_and_a_threshold_that_decides_are_not_told() -> None:
    made, idle = planned("teacache", (0.0, *[0.02] * 19), warmup=5)
    assert made.notes == ()
    assert idle == []


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_change_that_is_no_number_is_computed_and_told(value: float) -> None:
    made, _ = planned("teacache", (0.0, *[0.02] * 6, value, 0.02), warmup=5)
    assert made.cells[7].action == "compute"
    assert "the change of modulation is not finite at step 7: computed there" in made.notes
    assert made.cells[8].account == 0.0


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(
    "condition",
    [
        ir.Apply("not", (ir.Apply("ge", (ir.SignalRef("drift"), ir.Const(0.1))),)),
        ir.Apply("lt", (ir.Apply("min", (ir.SignalRef("drift"), ir.Const(0.05))), ir.Const(0.1))),
        ir.Apply("gt", (ir.Const(9.0), ir.Accumulate(ir.SignalRef("drift")))),
    ],
    ids=["not", "min", "accumulate"],
)
def test_no_condition_reuses_on_what_is_no_number(condition: ir.Expr, value: float) -> None:
    """However the comparison is written, and whatever hold says, the safe direction is computing."""
    policy = load_policy("teacache")
    rule = policy.phases[1].rule
    assert isinstance(rule, ir.Reuse)
    rule = replace(rule, condition=condition, hold_below=ir.Const(2.0))
    policy = replace(policy, phases=(policy.phases[0], replace(policy.phases[1], rule=rule)))
    drift = (0.0, *[0.02] * 6, value, 0.02)
    tables = dict.fromkeys(static_changes(policy, STATIC), drift)
    made = plan(bind(policy, {"warmup": 2}), grid_of(9), tables, STATIC)
    assert [c.action for c in made.cells[6:]] == ["reuse", "compute", "reuse"]


def test_a_fit_is_told_beyond_what_it_was_fitted_on() -> None:
    """From 5% above the highest argument on; nobody knows it of a polynomial without a name."""
    known = Fitted("own", (0.0, 0.2), (0.01, 0.1))
    fit = ir.Polynomial(MOTION, (1.0, 0.0), origin=known)
    inside = [("step 1", 0.1), ("step 2", 0.1 * (1 + BEYOND))]
    beyond_it = [*inside, ("step 3", 0.2), ("step 4", 0.106)]
    assert beyond(fit, inside, "2 steps") == ""
    assert beyond(fit, beyond_it, "4 steps").startswith(
        "polynomial own is used beyond what it was fitted on at 2 of 4 steps "
        "(0.2 at step 3; it was fitted on 0.01 to 0.1)"
    )
    assert beyond(replace(fit, origin=replace(known, fitted=None)), beyond_it, "4 steps") == ""
    assert beyond(replace(fit, origin=None), beyond_it, "4 steps") == ""


def test_a_fit_comes_from_what_the_policy_named_or_from_the_shipped_set_of_its_numbers() -> None:
    shipped = FITS[0]
    own = Fitted("own", None, None)
    assert origin_of(ir.Polynomial(MOTION, (1.0, 0.5))) is None
    assert origin_of(ir.Polynomial(MOTION, (1.0, 0.5), origin=own)) == own
    assert origin_of(ir.Polynomial(MOTION, shipped.values, origin=own)) == own
    found = origin_of(ir.Polynomial(MOTION, shipped.values))
    assert found is not None
    assert (found.domain, found.fitted) == (shipped.domain, shipped.fitted)
