"""A policy whose stand-ins have no value at a step that may reuse is refused before the run."""

from __future__ import annotations

import pytest
from policy_cases import grid_of

from mccompile.diagnostics.failure import PolicyError
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.evaluate import static_changes
from mccompile.policy.groups import bounds_of
from mccompile.policy.planner import plan
from mccompile.policy.standing import sound_plan


def _refused(text: str, steps: int = 12) -> list[str]:
    """What is said of each view of a policy."""
    bounds = bounds_of(bind(load_policy(text), {}))
    found = []
    for bound in bounds.values():
        try:
            sound_plan(bound, grid_of(steps))
        except PolicyError as error:
            found += [f"{d.code} step {d.step}" for d in error.diagnostics]
    return found


DATA = "reuse chunk while accumulate(rel_l1(latent)) < 0.10"


@pytest.mark.parametrize(
    ("rule", "what", "said"),
    [
        ("compute every 3 steps", "kept(residual) / (step - 4)", ["MC0311 step 4"]),
        ("compute every 3 steps", "kept(residual) / (step - 3)", []),  # that step is computed
        ("compute every 3 steps", "kept(residual) / (step - 40)", []),  # after the run
        ("compute every 3 steps", "kept(residual) / (1 - 2 * (step - kept(step)) / 4)", ["MC0311 step 2"]),  # by age
        ("compute every 2 steps", "kept(residual) / (1 - 2 * (step - kept(step)) / 4)", []),  # no such age
        ("compute every 3 steps", "kept(residual) * sqrt(5 - step)", ["MC0311 step 7"]),
        ("compute every 3 steps", "taylor(residual, order = 2)", []),
        (DATA, "kept(residual) / (step - 4)", ["MC0311 step 4"]),
        (DATA, "kept(residual) / (1 - 2 * (step - kept(step)) / 4)", []),  # only the run knows
        (DATA, "taylor(residual, order = 2)", []),
    ],
)
def test_of_layers(rule: str, what: str, said: list[str]) -> None:
    text = f"policy one {{ phase all {{ {rule} }} layers blocks[*] {{ keep residual  reuse as {what} }} }}"
    assert _refused(text) == said


def test_each_alternative_is_asked_about_the_steps_that_it_stands_in_at() -> None:
    """The first one reuses at steps 1 and 2, the second one at 3, 5, 6 and 7."""
    text = """policy two {{
      phase all {{
        reuse chunk as kept(residual) / (step - {first}) while step < 3
        reuse chunk as kept(residual) / (step - {second}) while step < 8
        at most 3 in a row
      }}
      layers blocks[*] {{ keep residual }}
    }}"""
    assert _refused(text.format(first=5, second=4)) == []
    assert _refused(text.format(first=2, second=5)) == ["MC0311 step 2", "MC0311 step 5"]


PHASES = """policy phases {{
  phase first {span} {{ {rule} }}
  phase then {{ reuse chunk as kept(residual) / (step - {weight}) while step < 9 }}
  layers blocks[*] {{ keep residual }}
}}"""


def test_a_step_is_asked_what_its_own_phase_lets_stand_in() -> None:
    """Or what any phase does, where data decides how long the first one lasts."""
    clock = {"span": "for 4 steps", "rule": "compute every 2 steps"}
    assert _refused(PHASES.format(**clock, weight=3)) == []
    assert _refused(PHASES.format(**clock, weight=5)) == ["MC0311 step 5"]
    data = {"span": "until 2 refreshes", "rule": "reuse chunk while rel_l1(latent) < 0.1"}
    assert _refused(PHASES.format(**data, weight=3)) == ["MC0311 step 3"]


def test_a_plan_that_is_sound_is_the_plan_from_what_was_measured() -> None:
    bound = bind(load_policy("teacache"), {"warmup": 2})
    (change,) = static_changes(bound.ir, frozenset({"modulation"}))
    tables = {change: tuple(0.02 * step for step in range(12))}
    for known in (tables, None):
        static = frozenset({"modulation"}) if known else frozenset[str]()
        found = sound_plan(bound, grid_of(12), known, static)
        assert found == plan(bound, grid_of(12), known or {}, static)
    assert {cell.action for cell in sound_plan(bound, grid_of(12), tables, frozenset({"modulation"})).cells} == {
        "compute", "reuse",
    }  # fmt: skip


def test_a_remedy_is_proposed() -> None:
    text = "policy one { phase all { compute every 3 steps } layers blocks[*] { keep residual  reuse as WHAT } }"
    (bound,) = bounds_of(bind(load_policy(text.replace("WHAT", "kept(residual) / (step - 4)")), {})).values()
    with pytest.raises(PolicyError, match=r"keep a divisor away from 0, such as `max\(step - 4, 1\)`"):
        sound_plan(bound, grid_of(12))


def test_of_frequencies_of_the_whole_model() -> None:
    text = """policy bands {{
      phase all {{ compute every 3 steps }}
      layers model {{ keep residual  reuse as {low} * low_pass(kept(residual)) + 1.1 * high_pass(kept(residual)) }}
    }}"""
    assert _refused(text.format(low="1 / (step - 4)")) == ["MC0311 step 4"]
    assert _refused(text.format(low="1 / (step - 3)")) == []


def test_regions_are_asked_about_their_own_steps_alone() -> None:
    """The front reuses at step 4, where the weight of the back has no value; the back computes there."""
    text = """policy apart {{
      phase all {{ front: compute every 3 steps  back: compute every {n} steps }}
      layers front = blocks[0..1] {{ keep residual }}
      layers back = blocks[2..] {{ keep residual  reuse as kept(residual) / (step - 4) }}
    }}"""
    assert _refused(text.format(n=4)) == []
    assert _refused(text.format(n=5)) == ["MC0311 step 4"]
