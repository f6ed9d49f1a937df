"""What a verdict says, and of which policies: every answer of `prove` with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from policy_cases import MODULATION, MOTION, PLAIN_CACHE, below, grid_of, policy, rest, reuse

from mccompile import ir
from mccompile.language.load import load_policy
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.planner import plan
from mccompile.policy.prove import NOTHING, Claim, ClaimVerdict, Equivalent, Implies, NeverReuses, prove
from mccompile.policy.settled import settled
from mccompile.policy.together import Two

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
    two = written(
        "phase r { front: compute every 2 steps rear: compute every 3 steps }",
        "layers front = blocks[0] { keep residual } layers rear = blocks[1..] { keep residual }",
    )
    alone = verdict(each, NeverReuses(0, 1))
    for found in (equivalent(two, two), equivalent(each, written()), implies(written(), each), alone):
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


def rows(first: ir.Rule, rule: ir.Rule, flush: bool = False) -> BoundPolicy:
    """Two steps of one rule, a step that computes all if asked for, then another rule."""
    begun = ir.Phase("first", ir.ForSteps(ir.Const(2.0)), first)
    between = (ir.Phase("flush", ir.ForSteps(ir.Const(1.0)), ir.Compute()),) if flush else ()
    return bind(policy(begun, *between, rest(rule)), {})


OWED = reuse(below(ir.Accumulate(MODULATION), ir.Const(0.5)))


TIMED = reuse(below(MODULATION, ir.Const(0.5)))


def recent(n: int) -> ir.Reuse:
    """Reuses while the n-th last computation is at most four steps old, and little changes."""
    step = ir.ClockRef("step")
    age = below(ir.Apply("sub", (step, ir.Kept(step, n))), ir.Const(4.5))
    return replace(TIMED, condition=ir.Apply("and", (TIMED.condition, age)))


MOVED = reuse(below(ir.FrameDiff(ir.SourceRef("latent"), True), ir.Const(0.5)))


@pytest.mark.parametrize(
    ("rule", "flush", "proved"),
    [
        (OWED, False, False), (OWED, True, True),
        (replace(OWED, max_consecutive=ir.Const(2.0)), False, False),
        (replace(OWED, max_consecutive=ir.Const(2.0)), True, True),
        (replace(TIMED, max_consecutive=ir.Const(2.0)), False, False),
        (MOVED, True, False),  # what it reads is never the same again
        (recent(1), True, True),
        (recent(2), True, False),  # before the step that computes all, another step was the last one
    ],
)  # fmt: skip
def test_counts_that_are_apart_are_alike_again_behind_a_step_that_computes_all(
    rule: ir.Reuse, flush: bool, proved: bool
) -> None:
    """A computes a step that B reuses. So B has more reuses in a row, or has added what A has not."""
    begun = replace(OWED, condition=below(ir.Accumulate(MODULATION), ir.Const(9.0)))
    late, early = rows(ir.Compute(), rule, flush), rows(begun, rule, flush)
    assert (prove(late, Implies(early), [grid_of(6)]).outcome == "proved") == proved
    assert prove(late, Implies(late), [grid_of(6)]).outcome == "proved"


def test_the_account_of_a_laxer_rule_is_cleared_later() -> None:
    """So in the third step it may compute what the tighter one reuses, though in the second it cannot."""
    tight, lax = (bind(policy(rest(replace(OWED, condition=below(OWED.condition.args[0], ir.Const(n))))), {})  # type: ignore[attr-defined]
                  for n in (0.5, 0.75))  # fmt: skip
    assert [prove(tight, Implies(lax), [grid_of(n)]).outcome for n in (2, 6)] == ["proved", "refuted"]


@pytest.mark.parametrize(
    ("mine", "theirs", "outcomes"),
    [(3, 3, ("proved", "proved")), (None, None, ("proved", "proved")), (3, 2, ("refuted", "refuted")),
     (3, None, ("unknown", "refuted")), (None, 3, ("refuted", "refuted"))],
)  # fmt: skip
def test_keys_and_values_that_are_due_at_other_steps_part_two_policies(
    mine: int | None, theirs: int | None, outcomes: tuple[str, str]
) -> None:
    for change in (MOTION, MODULATION):
        made = policy(rest(reuse(below(change, ir.Const(0.5)))))
        one, other = (
            bind(replace(made, cache=replace(PLAIN_CACHE, refresh_every=every)), {}) for every in (mine, theirs)
        )
        found = prove(one, Implies(other), [grid_of(8)]), prove(one, Equivalent(other), [grid_of(8)])
        assert tuple(f.outcome for f in found) == outcomes


def test_steps_are_followed_until_two_runs_can_part() -> None:
    """Every second and every third step are reused alike until step 2."""
    two, three, same = (bind(policy(rest(ir.Every(ir.Const(n)))), {}) for n in (2.0, 3.0, 2.0))
    together = Two(two, three, grid_of(9), NOTHING).until_apart()
    assert [all(one.equal for one in linked) for linked in together] == [True, True, False]
    assert len(Two(two, same, grid_of(9), NOTHING).until_apart()) == 9


def test_a_policy_may_look_back_further_than_the_other_one() -> None:
    """What A remembers of its computations is not cut to what B does."""
    table = ir.Table((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    since = ir.Apply("sub", (table, ir.Kept(table, 2)))
    looking, plain = (bind(policy(rest(reuse(below(value, ir.Const(3.0))))), {}) for value in (since, table))
    for one, other in ((looking, plain), (plain, looking)):
        assert prove(one, Equivalent(other), [grid_of(6)]).outcome == "refuted"
    assert prove(looking, Equivalent(looking), [grid_of(6)]).outcome == "proved"


@pytest.mark.parametrize(
    ("said", "same"),
    [("0.25 * 2", True), ("1 - 0.25 - 0.25", True), ("max(0.5, 0.25)", True), ("2 * fraction", False), ("0.25", False)],
)
def test_calculations_with_numbers_alone_are_settled(said: str, same: bool) -> None:
    written_out, settled_one = (
        settled(
            bind(load_policy(written(f"phase r {{ reuse chunk while rel_l1(modulation) + fraction < {limit} }}")), {})
        )
        for limit in (said, "0.5")
    )
    assert (written_out.ir.phases == settled_one.ir.phases) == same


@pytest.mark.parametrize(
    ("mine", "theirs", "reason"),
    [
        ("blocks[-1]", "blocks[1..]", "on a model of 1 blocks, A reuses block 0, which B always computes"),
        (
            "blocks[*].attn",
            "blocks[1..].attn",
            "on a model of 1 blocks, A reuses the `attn` of block 0, which B always computes",
        ),
        ("model", "blocks[*]", ALL_STEPS),
        ("blocks[*]", "model", ALL_STEPS),
        ("blocks[0..9]", "blocks[*]", ALL_STEPS),
        ("blocks[*]", "blocks[0..9]", "on a model of 11 blocks, A reuses block 10, which B always computes"),
        ("blocks[*].attn", "blocks[*]", ALL_STEPS),
    ],
)
def test_which_blocks_are_reused_is_compared_on_models_of_every_depth(mine: str, theirs: str, reason: str) -> None:
    a, b = (written(sections=f"layers {where} {{ keep residual }}") for where in (mine, theirs))
    assert implies(a, b).reason == reason
    idle = bind(replace(load_policy(a), phases=(rest(ir.Compute()),)), {})  # keeps what it never reuses
    assert prove(idle, Implies(bind(load_policy(b), {})), [grid_of(9)]).outcome == "proved"


def test_a_share_is_reused_for_certain_only_where_the_run_up_to_it_is_known() -> None:
    top, data = ir.Top(ir.Const(0.5), MOTION), reuse(below(MOTION, ir.Const(0.5)))
    until = ir.Phase("until", ir.UntilRefreshes(ir.Const(3.0)), top)
    behind = ir.Phase("first", ir.UntilRefreshes(ir.Const(2.0)), data)
    assert never(0, 3, until, rest(ir.Compute())).outcome == "refuted"
    assert never(2, 3, behind, rest(top)).outcome == "refuted"  # by a schedule, and not for certain
    assert never(2, 3, behind, rest(top)).shown is not None
    one, other = (bind(policy(rest(rule)), {}) for rule in (top, ir.Compute()))
    assert prove(one, Equivalent(other), [grid_of(4)]).outcome == "unknown"


def test_what_is_remembered_of_a_cell_is_unknown_behind_a_step_that_data_decides() -> None:
    """The rule looks back at the last computation; once all is computed, it is known again."""
    sizes = ir.Table((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0))
    near = below(ir.Apply("sub", (sizes, ir.Kept(sizes, 1))), ir.Const(1.5))
    one, flush = (ir.ForSteps(ir.Const(n)) for n in (2.0, 1.0))
    phases = (ir.Phase("data", one, reuse(below(MOTION, ir.Const(0.5)))), ir.Phase("open", one, reuse(near)),
              ir.Phase("flush", flush, ir.Compute()), rest(reuse(near)))  # fmt: skip
    made = plan(bind(policy(*phases), {}), grid_of(8), {}, frozenset())
    assert [cell.action[0] for cell in made.cells] == list("cdddcrcr")


def test_an_account_that_only_one_of_two_policies_fills_is_not_taken_for_equal() -> None:
    """Wherever A reuses, B does, until a rule of both reads what A alone has added."""
    other = replace(MODULATION, distance="l1")
    mine, theirs = below(ir.Accumulate(MODULATION), ir.Const(9.0)), below(ir.Accumulate(other, "debt"), ir.Const(9.0))
    owed = reuse(below(ir.Accumulate(other, "debt"), ir.Const(0.5)))
    both, one = (rows(reuse(condition), owed) for condition in (ir.Apply("and", (mine, theirs)), mine))
    assert [prove(both, Implies(one), [grid_of(n)]).outcome == "proved" for n in (2, 6)] == [True, False]
    assert prove(both, Implies(both), [grid_of(6)]).outcome == "proved"


EITHER = ir.Apply("or", (TIMED.condition, below(replace(MODULATION, distance="l1"), ir.Const(0.1))))


@pytest.mark.parametrize(
    "other",
    [
        replace(TIMED, hold_below=ir.Const(0.5)),
        replace(TIMED, granularity=ir.Granularity.TOKEN),
        replace(TIMED, condition=EITHER),  # computes where its other change is no number
        ir.Top(ir.Const(0.5), MOTION),
    ],
    ids=["guard", "granularity", "another change", "top"],
)
def test_rules_that_decide_otherwise_prove_nothing(other: ir.Rule) -> None:
    """Though a condition implies the other one."""
    one, two = (bind(policy(rest(rule)), {}) for rule in (TIMED, other))
    assert "proved" not in [prove(a, Implies(b), [grid_of(4)]).outcome for a, b in ((one, two), (two, one))]


@pytest.mark.parametrize(("merging", "proved"), [((), True), ((0,), False), ((1,), False), ((0, 1), False)])
def test_a_tighter_limit_proves_nothing_where_a_chunk_must_compute_some_token(
    merging: tuple[int, ...], proved: bool
) -> None:
    """Of tokens that take from others one at least is computed, which no limit of another policy knows."""
    bound = []
    for at, limit in enumerate((0.1, 0.2)):
        made = policy(rest(reuse(below(MODULATION, ir.Const(limit)))))
        nearest = ir.SourceRef("latent") if at in merging else None
        bound.append(bind(replace(made, regions=tuple(replace(one, nearest=nearest) for one in made.regions)), {}))
    tight, loose = bound
    assert (prove(tight, Implies(loose), [grid_of(4)]).outcome == "proved") == proved


def test_the_same_rule_may_let_another_result_stand_in() -> None:
    """What was added before decides which: both reuse all steps by the clock alone."""
    either = ir.Apply("or", tuple(below(ir.Accumulate(ir.Const(0.0)), ir.Const(n)) for n in (0.5, 9.0)))
    rule = replace(reuse(either), stand_ins=(ir.Forecast(((1.0,),)), None))
    little, much = (rows(reuse(below(ir.Accumulate(ir.Const(n)), ir.Const(9.0))), rule) for n in (0.25, 0.75))
    found = prove(little, Equivalent(much), [grid_of(4)])
    assert found.outcome == "refuted"
    assert found.reason == "both reuse step 2 of 4, and what stands in is not the same"
    assert prove(little, Equivalent(little), [grid_of(4)]).outcome == "proved"


def test_accounts_are_compared_by_what_is_in_them_where_it_is_known() -> None:
    """One rule adds nothing twice, and the other one has no account; then both read the same one."""
    nothing = reuse(below(ir.Accumulate(ir.Const(0.0)), ir.Const(9.0)))
    one, other = rows(nothing, OWED), rows(ir.Every(ir.Const(9.0)), OWED)
    assert prove(one, Equivalent(other), [grid_of(6)]).outcome == "proved"


@pytest.mark.parametrize("change", [MOTION, MODULATION])
def test_a_rule_with_an_account_and_a_guard_is_the_same_as_itself(change: ir.Change) -> None:
    condition = below(ir.Accumulate(change), ir.Const(0.5))
    rule = replace(OWED, condition=condition, granularity=ir.Granularity.TOKEN, hold_below=ir.Const(0.5))
    one, other = (bind(policy(rest(rule)), {}) for _ in range(2))
    assert prove(one, Equivalent(other), [grid_of(6)]).outcome == "proved"
