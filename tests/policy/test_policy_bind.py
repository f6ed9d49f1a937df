"""Values of parameters: defaults, overrides, and everything that is wrong with them at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import MODULATION, UNHURRIED, below, motioncache, policy, rest, reuse, warmup

from mccompile import ir
from mccompile.cli.options import assignment
from mccompile.diagnostics.failure import PolicyError
from mccompile.language.load import load_policy
from mccompile.policy.bind import BoundPolicy, Reach, bind


def codes(overrides: dict[str, float]) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        bind(motioncache(), overrides)
    return [d.code for d in caught.value.diagnostics]


def test_defaults_and_overrides() -> None:
    bound = bind(motioncache(), {"threshold": 0.2})
    assert bound.values == {"threshold": 0.2, "warmup": 5.0, "updates": 6.0, "floor": 0.6}
    assert bound.ir == motioncache()


def test_how_far_attention_reaches() -> None:
    made = motioncache()
    assert bind(made, {}).reach is None
    window = ir.KeyWindow(ir.ParamRef("warmup"), ir.Apply("sub", (ir.ParamRef("updates"), ir.Const(5.0))))
    windowed = replace(made, cache=replace(made.cache, window=window))
    assert bind(windowed, {"warmup": 7}).reach == Reach(7, 1, 0, ())
    with pytest.raises(PolicyError, match="invalid count in the cache of policy `made_by_hand`"):
        bind(windowed, {"updates": 4})


def test_which_keys_attention_picks() -> None:
    made = motioncache()
    terms = (ir.KeyTerm("attention", 3, ir.ParamRef("floor")), ir.KeyTerm("redundancy", 0, ir.Const(-0.5)))
    keys = ir.KeyChoice(ir.Apply("sub", (ir.ParamRef("updates"), ir.Const(5.0))), ir.KeySum(terms))
    window = ir.KeyWindow(ir.Const(2.0), ir.Const(1.0))
    picking = replace(made, cache=replace(made.cache, window=window, keys=keys))
    assert bind(picking, {"floor": 0.25}).reach == Reach(2, 1, 1, (0.25, -0.5))
    with pytest.raises(PolicyError, match="invalid count in the cache of policy `made_by_hand`"):
        bind(picking, {"updates": 5})


def test_all_problems_at_once() -> None:
    assert codes({"treshold": 0.1, "warmup": 2.5, "floor": 2}) == ["MC0301", "MC0303", "MC0302"]


def test_the_nearest_name_is_proposed_only_when_near() -> None:
    with pytest.raises(PolicyError, match="did you mean `threshold`") as caught:
        bind(motioncache(), {"treshold": 0.1, "zzz": 1})
    near, far = caught.value.diagnostics
    assert near.helps()
    assert not far.helps()


@UNHURRIED
@given(st.floats(0.01, 0.5))
def test_all_values_of_the_range_are_taken(value: float) -> None:
    assert bind(motioncache(), {"threshold": value}).values["threshold"] == value


@pytest.mark.parametrize("value", [0.0, 0.51, -1.0, float("nan"), float("inf")])
def test_no_value_beyond_the_range_is_taken(value: float) -> None:
    assert codes({"threshold": value}) == ["MC0302"]


def test_numbers_are_float32() -> None:
    bound = bind(motioncache(), {})
    expr = ir.Apply("mul", (ir.ParamRef("threshold"), ir.Const(3.0)))
    assert bound.number(expr) == np.float32(0.1) * np.float32(3.0)
    assert isinstance(bound.number(expr), np.float32)


def test_only_parameters_and_constants_have_a_number() -> None:
    with pytest.raises(ValueError, match="clock"):
        bind(motioncache(), {}).number(ir.ClockRef("step"))


def test_counts_must_be_counts() -> None:
    half = ir.Apply("mul", (ir.ParamRef("n"), ir.Const(0.5)))
    n = ir.Param("n", 4, 0, 9, True, "steps")
    made = policy(warmup(half), rest(ir.Every(half)), params=(n,))
    assert bind(made, {}).whole(half) == 2
    with pytest.raises(PolicyError) as caught:
        bind(made, {"n": 3})
    assert [d.code for d in caught.value.diagnostics] == ["MC0304", "MC0304"]
    with pytest.raises(PolicyError) as caught:
        bind(made, {"n": 0})
    assert [d.code for d in caught.value.diagnostics] == ["MC0304"]  # no step is a warm-up, every 0 is nothing


def test_all_tokens_may_be_computed_at_every_step() -> None:
    every = ir.AllAt(ir.ParamRef("n"), ())
    rule = replace(reuse(below(MODULATION, ir.Const(0.1))), all_at=every)
    made = policy(rest(rule), params=(ir.Param("n", 1, 0, 9, True, "steps"),))
    assert bind(made, {}).whole(ir.ParamRef("n")) == 1
    assert bind(policy(rest(ir.Every(ir.Const(1.0)))), {}).whole(ir.Const(1.0)) == 1
    with pytest.raises(PolicyError, match="invalid count in phase `all`"):
        bind(made, {"n": 0})


def test_tokens_are_merged_only_where_the_layers_say_so() -> None:
    assert not BoundPolicy(motioncache(), {}).merges
    assert bind(load_policy("merge"), {}).merges


def test_values_are_a_copy() -> None:
    overrides = {"threshold": 0.2}
    bound = bind(motioncache(), overrides)
    overrides["threshold"] = 0.3
    assert bound.values["threshold"] == 0.2


def test_a_bound_policy_may_be_a_key() -> None:
    assert len({bind(motioncache(), {}), bind(motioncache(), {"threshold": 0.2}), bind(motioncache(), {})}) == 2


def test_a_value_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="parameter `threshold` of policy `made_by_hand` must be a number, got 'low'"):
        bind(motioncache(), {"threshold": "low"})
    assert bind(motioncache(), {"threshold": np.float32(0.25), "warmup": np.int64(3)}).values["warmup"] == 3.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("floor=60%", 0.6), ("warmup=5", 5.0), ("warmup=5 steps", 5.0), ("warmup=1 step", 1.0), ("threshold=0.2", 0.2),
        ("floor=0.6", None), ("threshold=20%", None), ("warmup=5%", None), ("warmup=5 frames", None),
        ("updates=6 steps", None),
    ],
)  # fmt: skip
def test_a_value_from_the_command_line_has_the_unit_of_its_parameter(given: str, expected: float | None) -> None:
    name, value = assignment(given)
    if expected is None:
        assert codes({name: value}) == ["MC0309"]
    else:
        assert bind(motioncache(), {name: value}).values[name] == expected
