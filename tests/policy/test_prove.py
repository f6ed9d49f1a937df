"""Claims about policies: what is proved holds in every simulated run, and every counterexample is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOKENS, Chunk, Done
from policy_cases import MODULATION, MOTION, UNHURRIED, below, grid_of, policy, rest, reuse
from test_planner_oracle import rules, runs

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.policy import witness
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.phases import advance, start
from mccompile.policy.planner import first_situation, plan
from mccompile.policy.prove import Claim, ClaimVerdict, Equivalent, Implies, NeverReuses, prove
from mccompile.policy.rules import Static, decide
from mccompile.policy.settled import settled, with_tables
from mccompile.policy.together import implies
from mccompile.resources import shipped_policies

TOLD = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
GRIDS = tuple(grid_of(n) for n in (1, 4, 9, 12))


def told(text: str, **values: float) -> BoundPolicy:
    return bind(load_policy(text), values)


def verdict(a: BoundPolicy, claim: Claim) -> ClaimVerdict:
    return prove(a, claim, GRIDS)


# ---- single claims -----------------------------------------------------------------------------------------
def test_the_same_in_other_words_is_equivalent() -> None:
    """A parameter for a literal, a signal for its expression, a phase in two."""
    written = told("policy a { phase w for 3 steps { compute } phase r { reuse chunk while rel_l1(modulation) < 0.2 }"
                   " layers blocks[*] { keep residual } }")  # fmt: skip
    other = told("policy b { param t = 0.2 in 0.1..0.3 signal d = rel_l1(modulation) phase u for 1 step { compute }"
                 " phase v for 2 steps { compute } phase r { reuse chunk while d < t } layers blocks[*]"
                 " { keep residual } }")  # fmt: skip
    assert verdict(written, Equivalent(other)).outcome == "proved"
    assert verdict(written, Equivalent(bind(other.ir, {"t": 0.25}))).outcome == "refuted"


@pytest.mark.parametrize("name", ["motioncache", "fbcache", "top_motion", "magcache", "dbcache_taylor"])
def test_a_policy_is_equivalent_to_itself(name: str) -> None:
    assert verdict(told(name), Equivalent(told(name))).outcome == "proved"


MERGED = """policy merged {
  phase some for 1 step { compute top 50% of tokens by similarity(latent) }
  phase rest            { reuse token while REST }
  layers blocks[*] { keep residual KEPT }
}
"""


def merged(rest: str, near: bool = True) -> BoundPolicy:
    kept = "reuse as nearest(residual, by = latent)" if near else ""
    return told(MERGED.replace("REST", rest).replace("KEPT", kept))


@pytest.mark.parametrize("rest", ["rel_l1(modulation) < 0.1", "similarity(latent) > 0.9"])
def test_what_merges_computes_a_chunk_of_which_nothing_is_selected(rest: str) -> None:
    """So it does not reuse wherever its condition holds, and a claim that this would prove is none."""
    lax = rest.replace("0.1", "0.2").replace("0.9", "0.8")
    assert verdict(merged(rest), Equivalent(merged(rest))).outcome == "proved"
    assert verdict(merged(rest), Implies(merged(lax))).outcome != "proved"
    assert verdict(merged(rest, near=False), Implies(merged(rest))).outcome != "proved"
    (by_clock,) = {cell.action for cell in plan(merged("step < 9"), GRIDS[1], {}, frozenset()).cells[1:]}
    assert by_clock == "compute"


@pytest.mark.parametrize(("near", "first", "last"), [(True, True, None), (False, False, None)])
def test_a_decision_leaves_no_chunk_without_a_computed_token_where_tokens_merge(
    near: bool, first: bool, last: bool | None
) -> None:
    """The clock's reuse becomes a computation, and what data decides stays open."""
    for rule, expected in (("step < 9", first), ("similarity(latent) > 0.9", last)):
        bound = merged(rule) if near else replace(merged(rule), merges=False)
        at = replace(first_situation(bound), kept=True, state=advance(bound, start(bound), GRIDS[1], True))
        assert decide(bound, GRIDS[1], at, Static({}, frozenset())).compute is expected


def test_the_same_cells_with_something_else_in_their_place_are_not_the_same_results() -> None:
    """One of them has a second alternative, for distances below 0.1."""
    last = "reuse chunk as 3 * kept(residual) while rel_l1(latent) < 0.2"
    both = f"reuse chunk as 2 * kept(residual) while rel_l1(latent) < 0.1 {last}"
    one, two = (
        told(f"policy p {{ phase all {{ {rules} }} layers blocks[*] {{ keep residual }} }}") for rules in (both, last)
    )
    assert verdict(one, Equivalent(one)).outcome == "proved"
    assert verdict(one, Equivalent(two)).outcome != "proved"
    assert verdict(two, Equivalent(one)).outcome != "proved"


def test_a_higher_threshold_does_not_reuse_everywhere_else() -> None:
    """The account of the laxer policy is cleared later, so it can be the one that computes: a fact that surprises."""
    found = verdict(told("teacache"), Implies(told("teacache", threshold=0.2)))
    assert found.outcome == "refuted"
    assert found.shown is not None
    assert [one[-1] for one in found.shown.actions] == ["reuse", "compute"]


def test_without_an_account_it_does() -> None:
    tight, lax = (bind(policy(rest(reuse(below(MODULATION, ir.Const(t))))), {}) for t in (0.1, 0.2))
    assert verdict(tight, Implies(lax)).outcome == "proved"
    assert verdict(lax, Implies(tight)).outcome == "refuted"


def test_of_data_it_does_not_follow() -> None:
    """Once the two have parted, what is measured differs: no proof, though one schedule shows nothing either."""
    tight, lax = (bind(policy(rest(reuse(below(MOTION, ir.Const(t))))), {}) for t in (0.1, 0.2))
    found = verdict(tight, Implies(lax))
    assert found.outcome == "unknown"
    assert found.reason == "what is measured decides step 1 of a run of 4 steps, and no schedule was found"


def test_accounts_that_began_apart_are_not_taken_for_equal() -> None:
    account = rest(reuse(below(ir.Accumulate(MODULATION), ir.Const(0.5))))
    four = ir.ForSteps(ir.Const(4.0))
    late = bind(policy(ir.Phase("first", four, ir.Compute()), account), {})
    early = bind(policy(ir.Phase("first", four, replace(account.rule)), account), {})
    assert verdict(late, Implies(early)).outcome == "refuted"


def test_accounts_that_the_clock_has_filled_alike_are_equal() -> None:
    """Four steps are reused by the clock alone; what their rule has added counts in the phase that is measured."""

    def filled(by: ir.Expr) -> BoundPolicy:
        first = ir.Phase("first", ir.ForSteps(ir.Const(4.0)), reuse(below(ir.Accumulate(by), ir.Const(9.0))))
        return bind(policy(first, rest(reuse(below(ir.Accumulate(MOTION), ir.Const(0.5))))), {})

    fraction = ir.ClockRef("fraction")
    twice = filled(ir.Apply("add", (fraction, fraction)))
    assert verdict(filled(fraction), Equivalent(filled(fraction))).outcome == "proved"
    assert verdict(filled(fraction), Equivalent(twice)).outcome != "proved"
    assert verdict(twice, Implies(filled(fraction))).outcome != "proved"


@pytest.mark.parametrize(("distance", "outcome"), [("cosine", "unknown"), ("l1", "refuted")])
def test_no_schedule_has_a_distance_that_no_model_gives(distance: ir.Distance, outcome: str) -> None:
    """That of an angle is at most 2, so a rule that asks for more never reuses."""
    asked = ir.Change(distance, ir.SourceRef("latent"), "step", ir.Granularity.CHUNK)
    made = bind(policy(rest(reuse(ir.Apply("gt", (asked, ir.Const(2.5)))))), {})
    assert verdict(made, NeverReuses(0, 8)).outcome == outcome


TIMESTEP = reuse(below(ir.Accumulate(MODULATION), ir.Const(0.5)))


@pytest.mark.parametrize(
    ("rule", "proved"),
    [
        (TIMESTEP, True),
        (replace(TIMESTEP, granularity=ir.Granularity.TOKEN), True),
        (replace(TIMESTEP, granularity=ir.Granularity.STEP), False),  # other chunks may be ahead
        (replace(TIMESTEP, max_consecutive=ir.Const(2.0)), True),
        (replace(TIMESTEP, max_total=ir.Const(3.0)), False),  # one of them has reused before
        (reuse(below(ir.Accumulate(MOTION), ir.Const(0.5))), False),  # both measure something else
    ],
)
def test_what_the_timestep_decides_is_the_same_in_runs_that_have_parted(rule: ir.Rule, proved: bool) -> None:
    """One step is computed by A and reused by B; then both compute all, so their accounts are level again."""

    def begun(first: ir.Rule) -> BoundPolicy:
        two, one = ir.ForSteps(ir.Const(2.0)), ir.ForSteps(ir.Const(1.0))
        return bind(policy(ir.Phase("first", two, first), ir.Phase("flush", one, ir.Compute()), rest(rule)), {})

    found = verdict(begun(ir.Compute()), Implies(begun(ir.Every(ir.Const(9.0)))))
    assert (found.outcome == "proved") == proved


def test_bounds_of_calculations_prove_nothing() -> None:
    """They are those of real numbers, and a graph rounds."""
    above = ir.Apply("add", (MOTION, ir.Const(1.0)))
    assert not implies(below(above, ir.Const(0.5)), below(MOTION, ir.Const(0.1)))
    assert implies(below(above, ir.Const(0.5)), below(above, ir.Const(0.6)))
    assert implies(below(MOTION, ir.Const(-0.1)), below(above, ir.Const(0.6)))  # no distance is negative


NEAR, FAR = ir.Const(0.1), ir.Const(0.2)


@pytest.mark.parametrize(
    ("tight", "lax"),
    [
        (ir.Apply("lt", (MOTION, NEAR)), ir.Apply("lt", (MOTION, FAR))),
        (ir.Apply("le", (MOTION, NEAR)), ir.Apply("le", (MOTION, FAR))),
        (ir.Apply("gt", (MOTION, FAR)), ir.Apply("gt", (MOTION, NEAR))),
        (ir.Apply("ge", (MOTION, FAR)), ir.Apply("ge", (MOTION, NEAR))),
        (ir.Apply("and", (below(MOTION, FAR), below(MODULATION, FAR))), below(MODULATION, FAR)),
        (below(MODULATION, NEAR), ir.Apply("or", (below(MOTION, FAR), below(MODULATION, FAR)))),
        (below(MOTION, NEAR), ir.Apply("not", (ir.Apply("ge", (MOTION, FAR)),))),
    ],
    ids=lambda condition: condition.op,
)
def test_what_a_condition_implies(tight: ir.Expr, lax: ir.Expr) -> None:
    assert implies(tight, lax)
    assert not implies(lax, tight)


@pytest.mark.parametrize(
    "condition",
    [
        ir.Apply("lt", (ir.Const(40.0), MOTION)),
        ir.Apply("le", (ir.Const(40.0), MOTION)),
        ir.Apply("gt", (MOTION, ir.Const(40.0))),
        ir.Apply("ge", (MOTION, ir.Const(40.0))),
        ir.Apply("and", (ir.Apply("ge", (MOTION, ir.Const(40.0))), below(MODULATION, NEAR))),
    ],
    ids=lambda condition: condition.op,
)
def test_values_are_drawn_near_the_numbers_that_rules_compare_with(condition: ir.Expr) -> None:
    """No value that is drawn at random alone is above 2."""
    assert verdict(bind(policy(rest(reuse(condition))), {}), NeverReuses(0, 8)).outcome == "refuted"


@pytest.mark.parametrize(
    ("distance", "since", "limit", "marks"),
    [
        ("l1", "compute", 0.5, "crrcrr"), ("rel_l1", "compute", 0.3, "crcrrc"),
        ("cosine", "compute", 1.5, "crrccc"), ("l1", "step", 1.5, "crrccc"),
    ],
)  # fmt: skip
def test_a_told_source_gives_the_distance_to_the_last_computation(
    distance: ir.Distance, since: Literal["step", "compute"], limit: float, marks: str
) -> None:
    """It rises from 1 by 0.2 a step. Of an angle, and of what is compared with the step before, the values are told."""
    asked = ir.Change(distance, ir.SourceRef("latent"), since, ir.Granularity.CHUNK)
    bound = with_tables(bind(policy(rest(reuse(below(asked, ir.Const(limit))))), {}), {asked: TOLD})
    made = plan(bound, grid_of(6), {}, frozenset())
    assert "".join(cell.action[0] for cell in made.cells) == marks


def test_schedules_of_the_clock_alone() -> None:
    assert verdict(told("fixed_interval", interval=2), Implies(told("fixed_interval", interval=4))).outcome == "proved"
    assert verdict(told("compute"), Implies(told("motioncache"))).outcome == "proved"
    found = verdict(told("fixed_interval", interval=4), Implies(told("fixed_interval", interval=2)))
    assert found.reason == "at step 5 of a run of 9 steps, A reuses and B computes"


def test_steps_that_never_reuse() -> None:
    assert verdict(told("motioncache"), NeverReuses(0, 4)).outcome == "proved"
    assert verdict(told("motioncache"), NeverReuses(0, 5)).reason == "it reuses at step 5 of a run of 9 steps"
    assert verdict(told("top_motion"), NeverReuses(4, 5)).outcome == "refuted"
    assert verdict(told("motioncache_fast"), NeverReuses(0, 30)).outcome == "refuted"


def test_other_declarations_count() -> None:
    assert verdict(told("taylorseer"), Equivalent(told("fixed_interval", interval=4))).reason == "their layers differ"
    blocks = "on a model of 2 blocks, A reuses block 1, which B always computes"
    assert verdict(told("fbcache"), Implies(told("dbcache"))).reason == blocks


def test_no_possible_run_proves_nothing() -> None:
    assert verdict(told("step_mask"), Equivalent(told("step_mask"))).outcome == "proved"
    assert prove(told("step_mask"), NeverReuses(0, 1), [grid_of(40)]).outcome == "unknown"


@pytest.mark.parametrize("name", shipped_policies())
def test_what_is_settled_has_no_names_left(name: str) -> None:
    made = settled(told(name)).ir
    assert (made.params, made.signals) == ((), ())
    assert "Ref(name" not in repr(replace(made, regions=())).replace("SourceRef(name", "")


# ---- against the simulation --------------------------------------------------------------------------------
def near(rule: ir.Rule) -> st.SearchStrategy[ir.Rule]:
    """The rule with another limit or guard, or any other rule."""
    anything = rules(static=False) | rules(static=True)
    if not isinstance(rule, ir.Reuse) or not isinstance(rule.condition, ir.Apply):
        return anything
    first, condition = rule.condition.args[0], rule.condition
    limits = st.integers(1, 20).map(
        lambda n: replace(rule, condition=replace(condition, args=(first, ir.Const(n / 10))))
    )
    counts = st.integers(1, 4).map(lambda n: replace(rule, max_consecutive=ir.Const(float(n))))
    return st.one_of(limits, limits, counts, anything)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Chunk, Chunk]:
    """Two chunks of policies that are near each other, with the same data."""
    chunk, _ = draw(runs(static=False))
    changed, cache = list(chunk.bound.ir.phases), chunk.bound.ir.cache
    if draw(st.booleans()):
        place = draw(st.integers(0, len(changed) - 1))
        changed[place] = replace(changed[place], rule=draw(near(changed[place].rule)))
    elif draw(st.booleans()):
        cache = replace(cache, refresh_every=draw(st.none() | st.integers(1, 5)))
    other = bind(replace(chunk.bound.ir, phases=tuple(changed), cache=cache), {})
    return chunk, Chunk(other, chunk.grid, chunk.data)


def parted(chunk: Chunk, other: Chunk, seed: int) -> tuple[list[Done], list[Done]]:
    """Both runs. If they part, all that the second one measures is its own, apart from what the timestep decides."""
    fresh = [Chunk(c.bound, c.grid, c.data) for c in (chunk, other)]
    one, two = (c.run() for c in fresh)
    if all((a.computed == b.computed).all() for a, b in zip(one, two, strict=True)):
        return one, two
    motion = np.random.default_rng(seed).random((chunk.grid.steps, TOKENS), np.float32)
    return one, Chunk(other.bound, other.grid, {**other.data, MOTION: motion}).run()


def holds(claim: Claim, one: list[Done], two: list[Done]) -> list[bool]:
    """At every step."""
    if isinstance(claim, Implies):
        return [bool((a.computed | ~b.computed).all()) for a, b in zip(one, two, strict=True)]
    if isinstance(claim, Equivalent):
        return [bool((a.computed == b.computed).all()) for a, b in zip(one, two, strict=True)]
    return [bool(a.computed.all()) or not claim.first <= i <= claim.last for i, a in enumerate(one)]


@settings(UNHURRIED, max_examples=60)
@given(pairs(), st.sampled_from(["implies", "equivalent", "never"]), st.integers(0, 1000))
def test_a_verdict_is_what_runs_do(both: tuple[Chunk, Chunk], which: str, seed: int) -> None:
    chunk, other = both
    claims: dict[str, Claim] = {
        "implies": Implies(other.bound), "equivalent": Equivalent(other.bound), "never": NeverReuses(2, 5)
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(witness, "TRIES", 8)
        found = prove(chunk.bound, claims[which], [chunk.grid])
    if found.outcome == "proved":
        for more in range(3):
            assert all(holds(claims[which], *parted(chunk, other, seed + more)))
    elif found.shown is not None:
        told_values = {e: np.zeros((chunk.grid.steps, 1), np.float32) for e in (MODULATION, MOTION)}
        for expr, values in found.shown.values:
            told_values[expr][: len(values), 0] = values  # type: ignore[index]  # both are changes
        shown = (Chunk(c.bound, c.grid, told_values).run() for c in (chunk, other))
        assert not holds(claims[which], *shown)[found.shown.step]
