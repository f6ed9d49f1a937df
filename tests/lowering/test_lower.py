"""What a policy asks for and cannot have on a model: one batch for both branches, and decisions about single cells."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mccompile import ir
from mccompile.capture.types import Along, CapturedModel, Refusal, SampleCount
from mccompile.language.load import load_policy
from mccompile.lowering.decide import build_decide
from mccompile.lowering.lower import ONLY_COMPUTES, _apart, _decides, _refused

EVERY = ir.Every(ir.Const(2.0))
BASE = load_policy("policy p { phase a { compute every 2 steps } layers blocks[*] { keep residual } }")
(REGION,), (PHASE,) = BASE.regions, BASE.phases
OF_A_BLOCK = load_policy(
    "policy p { phase a { reuse chunk while l1(kept(blocks[1].residual), kept(blocks[1].residual, 2)) < 1 } "
    "layers blocks[*] { keep residual } }"
)


def port(name: str, *depends: str, batch: Any = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, depends=frozenset(depends), batch=batch)


def model(**facts: Any) -> CapturedModel:
    usual = {
        "samples": ("latent",), "unbatched": "", "refusals": (), "sources": (),
        "streams": (port("x", "latent", batch=Along(0)),),
        "shared": (port("size", batch=SampleCount()), port("clock", "t"), port("text", "prompt", batch=Along(0))),
    }  # fmt: skip
    return cast(CapturedModel, SimpleNamespace(**(usual | facts)))


def in_one_batch(policy: ir.PolicyIR, **changes: Any) -> ir.PolicyIR:
    return replace(policy, branches=replace(policy.branches, batch=True), **changes)


def test_both_branches_run_as_one_batch_where_samples_lie_along_the_first_axis() -> None:
    assert _apart(model(), BASE) == ""
    assert _refused(model(), in_one_batch(BASE), rows=True) == ()


AXIS = "do not lie along the first axis"
STAND_IN = ir.Forecast(((ir.Const(1.0),),))
TWO = (replace(REGION, name="front", where=ir.Blocks(0, 0)), replace(REGION, name="rear", where=ir.Blocks(1, -1)))
APART: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a stand-in": ({"regions": (replace(REGION, forecast=STAND_IN),)}, {}, "each branch forecasts from its own"),
    "the whole model": ({"regions": (replace(REGION, where=ir.WholeModel()),)}, {}, "each branch keeps what the model"),
    "own rules": (
        {"phases": (replace(PHASE, branches=(ir.BranchRule("uncond", EVERY),)),)}, {}, "the branches have rules",
    ),
    "regions with names": ({"regions": TWO}, {}, "regions with names decide apart"),
    "a budget": ({"cache": replace(BASE.cache, budget=1000)}, {}, "under a byte budget"),
    "one number of samples": ({}, {"samples": ()}, "the model was captured at one number of samples"),
    "a reason against others": ({}, {"samples": (), "unbatched": "it mixes samples"}, "it mixes samples"),
    "another axis": ({}, {"shared": (port("text", "prompt", batch=Along(1)),)}, f"samples of text {AXIS}"),
    "a source": ({}, {"sources": (port("rows", "t", batch=Along(1)),)}, f"samples of rows {AXIS}"),
    "several": (
        {}, {"streams": (port("x", "latent", batch=Along(2)), port("y", "latent", batch=SampleCount())), "shared": ()},
        f"samples of x, y {AXIS}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", APART)
def test_branches_that_run_apart_say_why(how: str) -> None:
    changes, facts, why = APART[how]
    policy, captured = in_one_batch(BASE, **changes), model(**facts)
    assert _apart(captured, policy).startswith(why)
    (refusal,) = _refused(captured, policy, rows=True)
    assert refusal.site == "branches of p"
    assert refusal.reason == f"run one after the other: {_apart(captured, policy)}"
    assert _refused(captured, replace(policy, branches=BASE.branches), rows=True) == ()


def test_a_block_that_is_looked_at_is_each_branchs_own() -> None:
    assert _apart(model(), OF_A_BLOCK).startswith("each branch keeps what a block has given it")


def test_sizes_have_no_samples_of_their_own() -> None:
    """What no input's data determines is the same for all samples, wherever it lies."""
    assert _apart(model(shared=(port("grid", batch=Along(1)),)), BASE) == ""


def reuse(granularity: ir.Granularity) -> ir.Reuse:
    condition = ir.Apply("lt", (ir.ClockRef("sigma"), ir.Const(0.5)))
    return ir.Reuse(granularity, condition, None, None, None, None, None, None)


TOP = ir.Top(ir.Const(0.5), ir.ClockRef("sigma"))


def phases(*rules: ir.Rule) -> tuple[ir.Phase, ...]:
    return tuple(replace(PHASE, name=f"p{i}", rule=rule) for i, rule in enumerate(rules))


def test_cells_that_are_decided_per_step_are_told_with_the_reasons() -> None:
    policy = replace(BASE, phases=phases(reuse(ir.Granularity.CHUNK), reuse(ir.Granularity.STEP), TOP))
    why = Refusal("conv", "it mixes tokens"), Refusal("norm", "so does this")
    (refusal,) = _refused(model(refusals=why), policy, rows=False)
    assert refusal.site == "phase p0, p2 of p"
    assert refusal.reason == "decided per step instead of per cell: conv: it mixes tokens; norm: so does this"
    (unknown,) = _refused(model(), policy, rows=False)
    assert unknown.reason.endswith("the model's token grid is not known")
    assert _refused(model(), policy, rows=True) == ()
    assert _refused(model(), replace(BASE, phases=phases(reuse(ir.Granularity.STEP))), rows=False) == ()


@pytest.mark.parametrize(
    ("rules", "alone"),
    [((TOP,), True), ((ir.Compute(), TOP), True), ((TOP, reuse(ir.Granularity.CHUNK)), False),
     ((ir.Compute(), reuse(ir.Granularity.CHUNK)), False)],
)  # fmt: skip
def test_a_policy_that_only_picks_tokens_computes_every_step(rules: tuple[ir.Rule, ...], alone: bool) -> None:
    found = _refused(model(), replace(BASE, phases=phases(*rules)), rows=False)
    assert [r.reason == ONLY_COMPUTES for r in found] == ([False, True] if alone else [False])
    assert found[-1].site == ("policy p" if alone else f"phase p{len(rules) - 1} of p") or len(rules) > 1


def test_so_does_one_whose_tokens_take_from_computed_ones() -> None:
    merged = (replace(REGION, nearest=ir.SourceRef("latent")),)
    policy = replace(BASE, phases=phases(reuse(ir.Granularity.TOKEN)), regions=merged)
    assert [r.reason == ONLY_COMPUTES for r in _refused(model(), policy, rows=False)] == [False, True]


def test_regions_that_merge_tokens_have_a_decision_graph_of_their_own() -> None:
    """A chunk of which nothing is selected is computed there, and not in regions that decide by the same rules."""
    front, rear = TWO
    policy = replace(BASE, phases=phases(reuse(ir.Granularity.TOKEN)), regions=(front, rear))
    one = _decides(policy, {}, frozenset())
    assert one["front"] is one["rear"]
    merging = replace(policy, regions=(replace(front, nearest=ir.SourceRef("latent")), rear))
    found = _decides(merging, {}, frozenset())
    for name, merges in (("front", True), ("rear", False)):
        wanted, made = build_decide(policy, {}, frozenset(), merges), found[name]
        assert wanted is not None
        assert made is not None
        assert made.module.code == wanted.module.code
