"""Rules that differ from block to block by `depth`: folded and unfolded, in what is selected, and what is refused."""

from __future__ import annotations

import math

import pytest

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.groups import bounds_of
from mccompile.policy.plan_text import headings
from mccompile.policy.planner import plan
from tests.runtime.test_each import BLOCKS, compiled, deep  # noqa: F401 (a fixture)
from tests.runtime.test_forecast import GRID, STEPS, outputs

BY_AGE = """policy p {
  param limit = 1 steps in 1..4
  phase first for 2 steps { compute }
  phase late { own: reuse chunk while step - kept(step) < limit * (1 + 3 * depth) }
  layers own = each blocks[*] { keep residual }
}"""
BY_SHARE = """policy p {
  param ratio = 20% in 5%..40%
  phase first for 2 steps { compute }
  phase late { compute top ratio * (1.5 - depth) of tokens by magnitude(input, by = l2, over = token) }
  layers each blocks[*] { keep residual }
}"""


def computed(events, region: str) -> list[int]:  # type: ignore[no-untyped-def]
    return [event.step for event in events if event.region == region and event.action == "full"]


def test_each_block_is_as_old_as_its_depth_allows(deep) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """Of four blocks, a result may be 1, 2, 3 and 4 steps old: the clock decides, so every block has its own plan."""
    made, clock = compiled(deep, BY_AGE)
    outputs(made, clock, range(STEPS))
    for block in range(BLOCKS):
        assert computed(made.events, f"own[{block}]") == [0, *range(1, STEPS, block + 1)]
    lowered = made.runner.lowered
    plans = {view: plan(bound, GRID, {}, frozenset()) for view, bound in bounds_of(made.runner.bound).items()}
    assert all(cell.action != "dynamic" for own in plans.values() for cell in own.cells)
    assert [*headings(lowered.policy, plans).values()] == [f"regions own[{block}]" for block in range(BLOCKS)]
    assert len({id(decide) for decide in made.runner.engine.decides.values()}) == 1


def test_blocks_that_have_one_plan_share_its_heading(deep) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    text = BY_AGE.replace("limit * (1 + 3 * depth)", "pick(depth, limits = [0.5], values = [2 steps, 3 steps])")
    made, _ = compiled(deep, text.replace("  param limit = 1 steps in 1..4\n", ""))
    plans = {view: plan(bound, GRID, {}, frozenset()) for view, bound in bounds_of(made.runner.bound).items()}
    titles = headings(made.runner.lowered.policy, plans)
    assert titles == {"own[0]": "regions own[0] to own[1]", "own[2]": "regions own[2] to own[3]"}


def test_a_decision_that_is_not_folded_reads_the_same_depth(deep) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """`rel_l1(input) >= 0` holds always, and data decide it: the graph has to know the depth that the planner knew."""
    text = BY_AGE.replace("* (1 + 3 * depth)", "* (1 + 3 * depth) and rel_l1(input) < 1000")
    made, clock = compiled(deep, text)
    outputs(made, clock, range(STEPS))
    for block in range(BLOCKS):
        assert computed(made.events, f"own[{block}]") == [0, *range(1, STEPS, block + 1)]


def test_the_share_of_tokens_falls_with_the_depth(deep) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    made, clock = compiled(deep, BY_SHARE)
    outputs(made, clock, range(STEPS))
    last = {event.region: event for event in made.events if event.step == STEPS - 1 and event.chunk == 0}
    shares = [last[f"blocks[{block}]"].computed / last[f"blocks[{block}]"].tokens for block in range(BLOCKS)]
    tokens = last["blocks[0]"].tokens
    assert shares == [math.ceil(tokens * 0.2 * (1.5 - block / 3) - 1e-6) / tokens for block in range(BLOCKS)]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (BY_SHARE.replace("each blocks", "blocks"), "many blocks have one decision here"),
        ("""policy p {
          phase first for 2 steps { compute }
          phase late { reuse chunk as (1 - depth) * kept(residual) while step - kept(step) < 3 }
          layers blocks[*] { keep residual }
        }""", "many blocks have one decision here"),
        ("""policy p {
          signal moved = rel_l1(input, over = chunk) * depth
          phase first for 2 steps { compute }
          phase late { reuse chunk while moved < 0.1 }
          layers each blocks[*] { keep residual }
        }""", "a signal is one for all layers"),
    ],
)  # fmt: skip
def test_depth_is_of_blocks_that_decide_apart(text: str, label: str) -> None:
    with pytest.raises(PolicyError) as refused:
        load_policy(Source("p.policy", text))
    (error,) = refused.value.diagnostics
    assert (error.code, error.span_label()) == ("MC0290", label)


def test_without_a_model_no_block_is_known() -> None:
    bound = bind(load_policy(Source("p.policy", BY_AGE)), {})
    (own,) = (plan(b, GRID, {}, frozenset()) for b in bounds_of(bound).values())
    assert {cell.action for cell in own.cells[2:]} == {"dynamic"}
