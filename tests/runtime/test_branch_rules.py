"""Rules of one guidance branch, and the gap to the other one, against the same written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.policy.groups import View, own_branches, policy_of, views
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.runtime.test_forecast import GRID, STEPS, call

ORDER = ("cond", "uncond")
WARMUP = 2


def compiled(
    model: WanTransformer3DModel, prepared: api.Prepared, policy: str | Source, **more: float
) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    return api.compile(model, policy, backend="eager", captured=prepared, clock=clock, **more), clock


def source(rules: str, layers: str = "layers model { keep gap }", signal: str = "") -> Source:
    return Source("p.policy", f"""policy p {{
  {signal}
  phase first for {WARMUP} steps {{ compute }}
  phase guide {{ {rules} }}
  {layers}
}}
""")


Calls = Sequence[tuple[int, str]]
IN_TURN: Calls = tuple((row, branch) for row in range(STEPS) for branch in ORDER)


def run(made: CompiledModel, clock: Timeline, calls: Calls = IN_TURN) -> dict[tuple[int, str], torch.Tensor]:
    found = {}
    for row, branch in calls:
        clock.row = row
        with made.cache_context(branch):
            found[row, branch] = made(**call(row, ORDER.index(branch)))[0]
    return found


def plain(
    model: WanTransformer3DModel, computes: Callable[[int], bool], calls: Calls = IN_TURN, leader: str = "cond"
) -> dict[tuple[int, str], torch.Tensor]:
    """The other branch's output plus the last gap to it, where the step does not compute the branch."""
    found: dict[tuple[int, str], torch.Tensor] = {}
    gap: torch.Tensor | None = None
    for row, branch in calls:
        beside = found.get((row, leader))
        if branch != leader and not computes(row) and gap is not None and beside is not None:
            found[row, branch] = beside + gap
            continue
        found[row, branch] = model(**call(row, ORDER.index(branch)))[0]
        if branch != leader:
            gap = None if beside is None else found[row, branch] - beside
    return found


def agree(ours: dict[tuple[int, str], torch.Tensor], theirs: dict[tuple[int, str], torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for at, value in ours.items():
        torch.testing.assert_close(value, theirs[at], rtol=1e-4, atol=1e-5, msg=lambda m, at=at: f"{at}: {m}")


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_cfgcache(interval: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    made, clock = compiled(small_wan, captured_wan, "cfgcache", warmup=WARMUP, interval=interval)
    agree(run(made, clock), plain(small_wan, lambda row: row < WARMUP or (row - WARMUP) % interval == 0))
    done = {branch: [e.action for e in made.events if e.branch == branch] for branch in ORDER}
    assert set(done["cond"]) == {"full"}
    assert done["uncond"].count("full") == WARMUP + -(-(STEPS - WARMUP) // interval)
    (request,) = made.runner.requests.values()
    plans = request.plans
    assert {name: {cell.action for cell in plan.cells} for name, plan in plans.items()} == {
        "cond": {"compute"}, "uncond": {"compute", "reuse"},
    }  # fmt: skip


def test_a_measured_rule_of_one_branch(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Data decides for the unconditional branch alone, by its own account."""
    policy = source("uncond: reuse chunk while accumulate(moved) < 0.3", signal="signal moved = rel_l1(latent)")
    made, clock = compiled(small_wan, captured_wan, policy)
    account, computed = 0.0, []
    for row in range(STEPS):
        now, before = (call(at)["hidden_states"] for at in (row, max(row - 1, 0)))
        assert isinstance(now, torch.Tensor)
        assert isinstance(before, torch.Tensor)
        account += float((now - before).abs().mean() / before.abs().mean()) if row >= WARMUP else 0.0
        computed.append(row < WARMUP or account >= 0.3)
        account = 0.0 if computed[-1] else account
    agree(run(made, clock), plain(small_wan, lambda row: computed[row]))
    assert set(computed[WARMUP:]) == {True, False}


def test_rules_of_a_branch_reuse_blocks_too(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Without a gap: the named branch reuses its own residual, and its own layers at its own steps."""
    layers = "layers front = blocks[0] { keep residual } layers rear = blocks[1] { keep residual }"
    rules = "front: compute every 2 steps  uncond.front: compute every 4 steps  uncond.rear: compute every 3 steps"
    made, clock = compiled(small_wan, captured_wan, source(rules, layers))
    run(made, clock)
    full = [e for e in made.events if e.action == "full"]
    done = {
        (branch, region): [e.step for e in full if (e.branch, e.region) == (branch, region)]
        for branch in ORDER
        for region in ("front", "rear")
    }
    late = range(WARMUP, STEPS)

    def every(n: int) -> list[int]:
        return [*range(WARMUP), *(s for s in late if (s - WARMUP) % n == 0)]

    assert done == {
        ("cond", "front"): every(2), ("cond", "rear"): every(1),
        ("uncond", "front"): every(4), ("uncond", "rear"): every(3),
    }  # fmt: skip


def test_what_cannot_be_served_is_computed_afresh(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """The other branch is called later, or is absent: the model's own output, and the reason."""
    policy = source("uncond: compute every 4 steps")

    def whys(calls: Calls) -> list[tuple[str, str]]:
        made, clock = compiled(small_wan, captured_wan, policy)
        agree(run(made, clock, calls), plain(small_wan, lambda row: row < WARMUP or (row - WARMUP) % 4 == 0, calls))
        return [(e.action, e.why) for e in made.events if e.branch == "uncond"]

    later = whys(tuple((row, branch) for row in range(STEPS) for branch in reversed(ORDER)))
    assert later[1:] == [("full", "`cond` was not called before it")] * (STEPS - 1)
    alone = whys(tuple((row, "uncond") for row in range(STEPS)))
    assert alone == later
    missing = tuple(at for at in IN_TURN if at != (4, "cond"))
    found = whys(missing)
    assert found[3] == ("reuse", "planned")
    assert found[4] == ("full", "`cond` was not called before it")
    assert found[5] == ("full", "`cond` was not called before it")  # no gap was kept at the step before
    assert [action for action, _ in found[6:]] == ["full", "reuse", "reuse"]


def test_a_changed_output_is_not_looked_at(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    made, clock = compiled(small_wan, captured_wan, source("uncond: compute every 6 steps"))
    for row in range(5):
        clock.row = row
        with made.cache_context("cond"):
            given = made(**call(row))[0]
        if row == 4:
            given.mul_(2)
        with made.cache_context("uncond"):
            found = made(**call(row, 1))[0]
    last = made.events[-1]
    assert (last.action, last.why) == ("full", "the output of `cond` was changed")
    torch.testing.assert_close(found, small_wan(**call(4, 1))[0])


def test_a_branch_that_is_never_called_is_told(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    made, clock = compiled(small_wan, captured_wan, source("uncond: compute every 4 steps"))
    run(made, clock, tuple((row, "cond") for row in range(STEPS)))
    assert "no call of the branch uncond was made" in str(made.summary())
    run(made, clock)
    assert "no call of the branch" not in str(made.summary())


def test_the_views_of_a_policy() -> None:
    layers = "layers front = blocks[..50%] { keep residual } layers blocks[50%..] { keep residual }"
    policy = load_policy(source("front: compute every 2 steps  uncond: compute every 3 steps", layers))
    assert own_branches(policy) == ("uncond",)
    assert [view.name for view in views(policy)] == ["front", "", "uncond front", "uncond"]
    rules = {view.name: policy_of(policy, view).phases[1].rule for view in views(policy)}
    assert [type(rule).__name__ for rule in rules.values()] == ["Every", "Compute", "Every", "Every"]
    assert rules["uncond front"] == rules["uncond"] != rules["front"]
    assert policy_of(policy, View("", "")).phases[1].branches is None
