"""The planner on the methods of the field, where the table can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from policy_cases import (
    MODULATION,
    PROBE,
    STATIC,
    below,
    grid_of,
    motioncache,
    policy,
    rest,
    reuse,
    warmup,
)

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.policy.bind import bind
from mccompile.policy.facts import computes_always
from mccompile.policy.planner import Plan, diff_plans, plan, predicted_share, read_plan, show_plan

C = ir.Const
MARKS = {"compute": "C", "reuse": "r", "dynamic": "?"}


def planned(made: ir.PolicyIR, steps: int, drift: tuple[float, ...] = (), fold: bool = True, **values: float) -> Plan:
    tables = {MODULATION: drift} if drift else {}
    return plan(bind(made, values), grid_of(steps), tables, STATIC, fold)


def marks(made: Plan) -> str:
    return "".join(MARKS[c.action] for c in made.cells)


def teacache(threshold: float) -> ir.PolicyIR:
    rule = reuse(below(ir.Accumulate(MODULATION), C(threshold)))
    return policy(warmup(C(2.0)), rest(rule), ir.Phase("last", ir.LastSteps(C(1.0)), ir.Compute()))


def between(what: Literal["step", "sigma", "timestep"], low: float, high: float, rule: ir.Rule) -> ir.Phase:
    return ir.Phase("between", ir.Between(ir.ClockRef(what), C(low), C(high)), rule)


def test_teacache() -> None:
    made = planned(teacache(0.75), 10, (9.0, 9.0, *[0.25] * 8))
    assert marks(made) == "CCrrCrrCrC"
    assert [c.account for c in made.cells] == [0, 0, 0, 0.25, 0.5, 0, 0.25, 0.5, 0, 0.25]
    assert [made.phases[c.phase] for c in made.cells if c.phase is not None] == ["warmup"] * 2 + ["all"] * 7 + ["last"]
    assert predicted_share(made) == 0.5
    assert made.notes == ()


def test_every_third() -> None:
    made = planned(policy(warmup(C(2.0)), rest(ir.Every(C(3.0)))), 10)
    assert marks(made) == "CCCrrCrrCr"
    masked = planned(policy(rest(ir.StepMask((True, False, False, True)))), 4)
    assert marks(masked) == "CrrC"
    assert {cell.way for cell in (*made.cells, *masked.cells)} == {0}  # neither has alternatives


def test_a_phase_that_waits_for_refreshes_ends_where_data_says() -> None:
    """After step 1 it has seen one or two of them; after step 2, one to three."""
    waiting = ir.Phase("waiting", ir.UntilRefreshes(C(2.0)), reuse(below(PROBE, C(0.5))))
    made = planned(policy(waiting, rest(ir.Compute())), 4)
    assert marks(made) == "C???"
    assert [cell.phase for cell in made.cells] == [0, 0, None, None]
    sure = replace(waiting, rule=replace(reuse(below(PROBE, C(0.5))), all_at=ir.AllAt(None, (3,))))
    made = planned(policy(sure, rest(ir.Compute())), 5)
    assert marks(made) == "C??CC"  # at step 3 the second one is certain
    assert made.cells[4].phase == 1


def test_a_rule_that_reuses_computes_all_at_its_own_steps() -> None:
    """Every third step of the phase, or steps by their number, while the condition would always reuse."""
    for all_at, expected in (
        (ir.AllAt(C(3.0), ()), "CCCrrCrrCr"),
        (ir.AllAt(None, (4, 9)), "CCrrCrrrrC"),
        (ir.AllAt(C(4.0), (3,)), "CCCCrrCrrr"),
    ):
        rule = replace(reuse(below(C(0.0), C(1.0))), all_at=all_at)
        assert marks(planned(policy(warmup(C(2.0)), rest(rule)), 10)) == expected


@pytest.mark.parametrize(("step", "told"), [(9, False), (10, True), (11, True)])
def test_a_step_behind_the_last_one_is_told(step: int, told: bool) -> None:
    rule = replace(reuse(below(C(0.0), C(1.0))), all_at=ir.AllAt(C(2.0), (step,)))
    notes = planned(policy(warmup(C(2.0)), rest(rule)), 10).notes
    assert (f"phase all computes all at step {step}, and the run has 10 steps" in notes) == told


@pytest.mark.parametrize(("step", "told"), [(0, True), (1, True), (2, False)])
def test_a_step_of_another_phase_is_told(step: int, told: bool) -> None:
    """A rule that computes all at a step at which it is not in force does nothing there."""
    rule = replace(reuse(below(C(0.0), C(1.0))), all_at=ir.AllAt(None, (step, 5)))
    notes = planned(policy(warmup(C(2.0)), rest(rule)), 10).notes
    assert (f"phase all computes all at step {step}, and another phase is in force there" in notes) == told


@pytest.mark.parametrize(("pending", "finished"), [("compute", "compute"), ("skip", "compute"), ("compute", "keep")])
def test_only_a_policy_that_computes_every_chunk_at_every_step_is_the_model_itself(pending: str, finished: str) -> None:
    chunks = replace(policy(rest(ir.Compute())).chunks, pending=pending, finished=finished)  # type: ignore[arg-type]
    for rule, all_steps in ((ir.Compute(), True), (reuse(below(C(0.0), C(1.0))), False)):
        made = replace(policy(rest(rule)), chunks=chunks)
        assert computes_always(made) == (all_steps and (pending, finished) == ("compute", "compute"))


def test_pab_in_its_range() -> None:
    made = policy(between("timestep", 100.0, 800.0, ir.Every(C(2.0))), rest(ir.Compute()))
    assert marks(planned(made, 10)) == "CCCCrCrCrC"  # 700..100 are in the range: compute, reuse, ...


def test_scm_medium() -> None:
    bins = zip([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3, 0], strict=True)
    text = "".join("C" * c + "r" * r for c, r in bins)
    made = planned(policy(rest(ir.StepMask(tuple(t == "C" for t in text)))), 28)
    assert marks(made) == text
    assert predicted_share(made) == 15 / 28


def test_magcache_accumulates_a_table_with_a_cap() -> None:
    errors = ir.Table((0.0, 0.0, 0.0, 0.04, 0.04, 0.04, 0.01, 0.01, 0.01, 0.01))
    rule = replace(reuse(below(ir.Accumulate(errors), C(0.12))), max_consecutive=C(3.0))
    assert marks(planned(policy(warmup(C(3.0)), rest(rule)), 10)) == "CCCrrCrrrC"


def test_motioncache_folds_up_to_its_fine_phase() -> None:
    made = planned(motioncache(), 20, tuple([0.0125] * 20), threshold=0.1, updates=2)
    coarse = [c for c in made.cells if c.phase == 1]
    assert {c.action for c in coarse} == {"compute", "reuse"}
    assert [c.action for c in coarse].count("compute") == 2
    assert coarse[-1].action == "compute"
    fine = [c for c in made.cells if c.phase == 2]
    assert {c.action for c in fine} == {"dynamic"}
    assert len(fine) + len(coarse) + 5 == 20
    assert fine[0].account == 0.0
    assert fine[1].account is None
    unfolded = planned(motioncache(), 20, tuple([0.0125] * 20), fold=False, threshold=0.1, updates=2)
    assert marks(unfolded) == "CCCCC" + "?" * 15
    assert [c.values for c in unfolded.cells] == [c.values for c in made.cells]


def test_a_probe_since_the_last_computation_is_never_folded() -> None:
    made = policy(rest(reuse(below(PROBE, C(0.1)))), ir.Phase("last", ir.LastSteps(C(2.0)), ir.Compute()))
    assert marks(planned(made, 6)) == "C???CC"
    anywhere = plan(bind(made, {}), grid_of(6), {}, frozenset({"probe"}))
    assert marks(anywhere) == "C???CC"


def test_the_first_step_and_refreshes_are_forced() -> None:
    never = reuse(below(C(0.0), C(1.0)))
    made = policy(rest(never))
    assert marks(planned(made, 6)) == "Crrrrr"
    refreshed = replace(made, cache=replace(made.cache, refresh_every=2, refresh_last=True))
    assert marks(planned(refreshed, 6)) == "CrCrCC"
    assert marks(planned(policy(rest(ir.StepMask((False,) * 6))), 6)) == "Crrrrr"


def test_folding_resumes_after_data_was_needed() -> None:
    dynamic = ir.Phase("dynamic", ir.ForSteps(C(2.0)), reuse(below(PROBE, C(0.1))))
    flush = ir.Phase("flush", ir.ForSteps(C(1.0)), ir.Compute())
    made = planned(policy(warmup(C(1.0)), dynamic, flush, rest(ir.Every(C(2.0)))), 8)
    assert marks(made) == "C??CCrCr"
    assert [c.account for c in made.cells] == [0, 0, None, None, 0, 0, 0, 0]


@pytest.mark.parametrize("empty", range(8))  # other indices, another order in the planner's sets
def test_what_situations_disagree_on_is_left_to_the_run(empty: int) -> None:
    before = [ir.Phase(f"empty{i}", ir.ForSteps(C(0.0)), ir.Compute()) for i in range(empty)]
    dynamic = ir.Phase("dynamic", ir.UntilRefreshes(C(1.0)), reuse(below(PROBE, C(0.1))))
    masked = ir.Phase("masked", ir.ForSteps(C(2.0)), ir.StepMask((False,) * 9))
    made = planned(policy(*before, warmup(C(1.0)), dynamic, masked, rest(ir.Compute())), 9)
    assert marks(made) == "C????????"
    assert [c.phase for c in made.cells] == [empty, empty + 1, *[None] * 7]


def test_counts_that_data_decides_are_not_guessed() -> None:
    dynamic = ir.Phase("dynamic", ir.ForSteps(C(2.0)), reuse(below(PROBE, C(0.1))))
    never = ir.StepMask((False,) * 8)
    made = policy(warmup(C(1.0)), dynamic, rest(never))
    assert marks(planned(made, 8)) == "C??rrrrr"
    refreshed = replace(made, cache=replace(made.cache, refresh_every=3))
    assert marks(planned(refreshed, 8)) == "C???????"
    always = reuse(below(C(0.0), C(1.0)))
    capped = replace(always, max_total=C(3.0))
    assert marks(planned(policy(rest(capped)), 8)) == "CrrrCCCC"
    assert marks(planned(policy(warmup(C(1.0)), dynamic, rest(capped)), 8)) == "C???????"


@pytest.mark.parametrize(
    ("guards", "expected"),
    [
        ({"vote": C(0.99)}, "CrCrC"),
        ({"vote": C(1.0)}, "Crrrr"),  # more than all frames: never
        ({"hold_below": C(1.0)}, "CrCrC"),
        ({"hold_below": C(1.1)}, "Crrrr"),
        ({"all_above": C(0.0)}, "CrCrC"),
        ({"max_reused": C(1.0)}, "CrCrC"),
        ({"max_reused": C(0.9)}, "C????"),  # some tokens of a reused chunk are computed
    ],
)
def test_guards_on_shares_of_a_whole_chunk(guards: dict[str, ir.Expr], expected: str) -> None:
    made = policy(rest(replace(reuse(below(ir.Accumulate(MODULATION), C(0.5))), **guards)))
    assert marks(planned(made, 5, (0.25,) * 5)) == expected


def test_what_is_void_is_noted() -> None:
    assert planned(teacache(100.0), 10, (0.25,) * 10).notes == (
        "phase all never computes: its condition holds at all of its steps",
    )
    assert planned(teacache(0.1), 10, (0.25,) * 10).notes == (
        "phase all never reuses: its condition holds at none of its steps",
    )
    assert "phase fine is never reached in 20 steps" in planned(motioncache(), 20, (0.0,) * 20).notes
    assert planned(motioncache(), 20, (0.02,) * 20, updates=0).notes == ()  # an empty phase is meant


@pytest.mark.parametrize(
    ("made", "steps", "codes"),
    [
        (policy(rest(ir.StepMask((True,) * 4))), 5, ["MC0305"]),
        (policy(warmup(C(4.0))), 5, ["MC0306"]),
        (policy(ir.Phase("a", ir.UntilRefreshes(C(4.0)), ir.Compute())), 5, ["MC0306"]),
        (policy(warmup(C(4.0)), ir.Phase("b", ir.LastSteps(C(1.0)), ir.Compute())), 6, ["MC0306"]),
        (policy(between("step", 5.0, 9.0, ir.Compute()), rest(ir.Compute())), 5, ["MC0307"]),
        (policy(between("sigma", 0.5, 0.5, ir.StepMask(()))), 5, ["MC0305", "MC0307", "MC0306"]),
    ],
)
def test_refusals(made: ir.PolicyIR, steps: int, codes: list[str]) -> None:
    with pytest.raises(PolicyError) as caught:
        planned(made, steps)
    assert [d.code for d in caught.value.diagnostics] == codes


def test_phases_that_just_cover_the_run_are_accepted() -> None:
    made = policy(warmup(C(4.0)), ir.Phase("b", ir.LastSteps(C(1.0)), ir.Compute()))
    assert marks(planned(made, 5)) == "CCCCC"


def test_phases_may_be_over_where_others_interrupt_them() -> None:
    """Data decides, so the planner goes on with every situation in which the phases before are over."""
    measured = reuse(below(PROBE, C(0.5)))
    first, last = ir.Phase("first", ir.ForSteps(C(3.0)), measured), ir.Phase("last", ir.LastSteps(C(3.0)), measured)
    made = planned(policy(first, last), 6)
    assert marks(made) == "C?????"
    assert [cell.phase for cell in made.cells] == [0, 0, 0, 1, 1, 1]


def test_each_account_has_a_column_of_its_own() -> None:
    def owed(into: str, limit: float) -> ir.Expr:
        return below(ir.Accumulate(MODULATION, into), C(limit))

    both = reuse(ir.Apply("and", (owed("account", 0.75), ir.Apply("and", (owed("debt", 2.0), owed("rest", 2.0))))))
    made = planned(policy(rest(both)), 4, (9.0, 0.5, 0.125, 0.25))
    assert made.accounts == ("debt", "rest")
    assert [(cell.account, cell.others) for cell in made.cells] == [
        (0.0, (0.0, 0.0)), (0.0, (0.0, 0.0)), (0.5, (0.5, 0.5)), (0.625, (0.625, 0.625))
    ]  # fmt: skip
    assert marks(made) == "CrrC"
    assert read_plan(show_plan(made)) == made


def test_a_missing_or_short_table_is_refused() -> None:
    for table in ((), (0.0,) * 9):
        with pytest.raises(ValueError, match="must have 10 entries"):
            planned(teacache(0.1), 10, table)


def test_the_share_of_a_dynamic_plan_is_not_predicted() -> None:
    with pytest.raises(ValueError, match="dynamic"):
        predicted_share(planned(policy(rest(reuse(below(PROBE, C(0.1))))), 6))


def test_plans_differ_by_their_decisions() -> None:
    drift = (0.0, *[0.25] * 5)
    slow, fast = planned(teacache(0.3), 6, drift), planned(teacache(0.6), 6, drift)
    assert (marks(slow), marks(fast)) == ("CCrCrC", "CCrrCC")
    assert diff_plans(slow, slow) == "the plans decide alike\n"
    assert diff_plans(slow, fast) == (
        "step 3: all compute -> all reuse\nstep 4: all reuse -> all compute\nthe plans differ in 2 steps\n"
    )
    assert diff_plans(slow, planned(teacache(0.3), 5, drift)).splitlines()[-2] == "step 5: last compute -> no such step"
