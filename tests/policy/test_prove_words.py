"""What a verdict says, and of which policies: every answer of `prove` with its reason."""

from __future__ import annotations

import pytest
from policy_cases import MODULATION, MOTION, below, grid_of, policy, rest, reuse

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.prove import Claim, ClaimVerdict, Equivalent, Implies, NeverReuses, prove

PLAIN = "layers blocks[*] { keep residual }"
PHASE = "phase r { reuse chunk while rel_l1(modulation) < 0.2 }"


def written(phases: str = PHASE, sections: str = PLAIN) -> str:
    return f"policy a {{ {phases} {sections} }}"


def verdict(a: str, claim: Claim, steps: tuple[int, ...] = (9,)) -> ClaimVerdict:
    return prove(bind(load_policy(a), {}), claim, [grid_of(n) for n in steps])


def equivalent(a: str, b: str) -> ClaimVerdict:
    return verdict(a, Equivalent(bind(load_policy(b), {})))


def implies(a: str, b: str) -> ClaimVerdict:
    return verdict(a, Implies(bind(load_policy(b), {})))


@pytest.mark.parametrize(
    ("sections", "differ"),
    [
        (f"{PLAIN} chunks {{ pending: compute }}", "chunks"),
        (f"{PLAIN} branches {{ share decision of cond }}", "branches"),
        (f"{PLAIN} cache {{ dtype: bfloat16 }}", "cache"),
        ("layers blocks[1..] { keep residual }", "layers"),
        ("layers blocks[*] { keep output } cache { dtype: bfloat16 }", "layers and cache"),
    ],
)
def test_which_declarations_differ_is_told(sections: str, differ: str) -> None:
    found = equivalent(written(), written(sections=sections))
    assert (found.outcome, found.reason) == ("refuted", f"their {differ} differ")


ALL_STEPS = "it holds whatever is measured, on every grid"
THESE = "it holds on the flow-matching grids of these runs: a rule or a phase reads the timestep or sigma"


@pytest.mark.parametrize(
    ("phases", "scope"),
    [
        (PHASE, ALL_STEPS),
        ("phase r { reuse chunk while fraction < 0.5 }", ALL_STEPS),
        ("phase w while 2 <= step < 4 { compute } " + PHASE, ALL_STEPS),
        ("phase w while sigma >= 0.5 { compute } " + PHASE, THESE),
        ("phase r { reuse chunk while timestep < 500 }", THESE),
        ("phase r { reuse chunk while 2 * sigma < 1 }", THESE),
    ],
)
def test_where_a_proof_holds_is_told(phases: str, scope: str) -> None:
    found = equivalent(written(phases), written(phases))
    assert (found.outcome, found.reason) == ("proved", scope)


def test_ranges_by_share_are_compared_where_they_read_alike() -> None:
    half, third = (written(sections=f"layers blocks[..{share}] {{ keep residual }}") for share in ("50%", "30%"))
    unknown = "which blocks a share of the depth is depends on the model"
    assert implies(half, half).outcome == "proved"
    assert [(f.outcome, f.reason) for f in (implies(half, third), implies(third, written()))] == [
        ("unknown", unknown)
    ] * 2
    assert equivalent(half, third).reason == "their layers differ"
    assert implies(written(), written(sections="layers blocks[1..] { keep residual }")).outcome == "refuted"


def test_what_decides_apart_is_not_compared() -> None:
    each = written("phase r { reuse chunk while rel_l1(input) < 0.1 }", "layers each blocks[*] { keep residual }")
    apart = "regions or branches that decide apart are not compared"
    for found in (equivalent(each, written()), implies(written(), each), verdict(each, NeverReuses(0, 1))):
        assert (found.outcome, found.reason, found.runs) == ("unknown", apart, ())


def never(first: int, last: int, *phases: ir.Phase) -> ClaimVerdict:
    return prove(bind(policy(*phases), {}), NeverReuses(first, last), [grid_of(9)])


def test_steps_of_a_claim_are_those_that_it_names() -> None:
    """Step 4 waits for an angle that there is not, and step 5 reuses: only who asks for step 5 is shown it."""
    angle = ir.Change("cosine", ir.SourceRef("latent"), "step", ir.Granularity.CHUNK)
    wide = reuse(ir.Apply("gt", (angle, ir.Const(2.5))))
    phases = (
        ir.Phase("warmup", ir.ForSteps(ir.Const(4.0)), ir.Compute()),
        ir.Phase("angle", ir.ForSteps(ir.Const(1.0)), wide),
        rest(reuse(below(MOTION, ir.Const(0.5)))),
    )
    assert [never(0, last, *phases).outcome for last in (3, 4, 5)] == ["proved", "unknown", "refuted"]
    assert never(5, 5, *phases).outcome == "refuted"
    shown = never(0, 5, *phases).shown
    assert shown is not None
    assert (shown.steps, shown.step, [len(values) for _, values in shown.values]) == (9, 5, [6, 6])
    assert [len(actions) for actions in shown.actions] == [6]


@pytest.mark.parametrize(("share", "outcome"), [(0.5, "refuted"), (1.0, "unknown")])
def test_a_share_of_the_tokens_is_reused_for_certain(share: float, outcome: str) -> None:
    found = never(0, 3, rest(ir.Top(ir.Const(share), MOTION)))
    assert found.outcome == outcome
    certain = "step 1 of 9 reuses a share of the tokens of every large chunk"
    chosen = (
        "what is measured decides step 1 of a run of 9 steps, and no schedule was found; tokens are chosen against "
        "each other, which no schedule of alike tokens shows"
    )
    assert found.reason == (certain if outcome == "refuted" else chosen)


def limited(most: float | None) -> ir.Reuse:
    rule = reuse(below(MODULATION, ir.Const(0.5)))
    return ir.Reuse(rule.granularity, rule.condition, None, None, None, most and ir.Const(most), None, None)


@pytest.mark.parametrize(
    ("mine", "theirs", "proved"),
    [(2.0, 3.0, True), (2.0, 2.0, True), (2.0, None, True), (3.0, 2.0, False), (None, 2.0, False), (None, None, True)],
)
def test_a_limit_is_reached_wherever_a_tighter_one_is(mine: float | None, theirs: float | None, proved: bool) -> None:
    """In two steps. Later on, the tighter one may have begun to count anew, and reuse where the other one computes."""
    one, other = (bind(policy(rest(limited(most))), {}) for most in (mine, theirs))
    found = prove(one, Implies(other), [grid_of(2)])
    assert (found.outcome == "proved") == proved
