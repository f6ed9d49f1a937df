"""Stand-ins whose weights the decision measures: DiCache, against its rule written out in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_forecast import GRID, STEPS, call


def dicache(
    model: WanTransformer3DModel, threshold: float, furthest: float
) -> tuple[list[torch.Tensor], list[bool], list[float]]:
    """The last block is reused; how far to go between its last two residuals, the first block's residual says."""
    made, computed, reaches = [], [], []
    account, before = 0.0, torch.zeros(0)
    probes: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.blocks[0].register_forward_hook(lambda _, given, out: seen.update(entered=given[0], probed=out)),
        model.blocks[1].register_forward_hook(lambda _, given, out: seen.update(left=out)),
    ]
    for step in range(STEPS):
        output = model(**call(step))[0]
        probe, residual = seen["probed"] - seen["entered"], seen["left"] - seen["probed"]
        reuse = False
        if step >= 0.2 * STEPS:
            account += float((seen["probed"] - before).abs().mean() / before.abs().mean())
            reuse = account < threshold
        before = seen["probed"]
        if reuse:
            last, second = probes[-1], probes[-2]
            reach = float((probe - second).abs().mean() / (last - second).abs().mean())
            reaches.append(min(max(reach, 1.0), furthest))
            kept = residuals[-2] + reaches[-1] * (residuals[-1] - residuals[-2])
            stand_in = model.blocks[1].register_forward_hook(lambda _, given, out: given[0] + kept)  # noqa: B023
            output = model(**call(step))[0]
            stand_in.remove()
        else:
            account = 0.0
            probes.append(probe)
            residuals.append(residual)
        made.append(output)
        computed.append(not reuse)
    for hook in hooks:
        hook.remove()
    return made, computed, reaches


@pytest.mark.parametrize(("threshold", "furthest"), [(0.2, 2.0), (0.5, 3.0), (0.02, 2.0)])
def test_dicache(
    threshold: float, furthest: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    values = {"threshold": threshold, "furthest": furthest}
    made = api.compile(small_wan, "dicache", backend="eager", captured=captured_wan, clock=clock, **values)
    found = []
    for clock.row in range(STEPS):
        found.append(made(**call(clock.row))[0])
    with torch.no_grad():
        wanted, computed, reaches = dicache(small_wan, threshold, furthest)
    assert [event.action == "full" for event in made.events] == computed
    assert any(reach > 1 for reach in reaches) or threshold < 0.1
    for row, (a, b) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")


STATIC = """policy p {
  phase first for 3 steps { compute }
  phase cache             { reuse chunk while step - kept(step) < 3 }
  layers blocks[*] { keep residual }
}
"""
WEIGHED = STATIC.replace("{\n", "{\n  signal moved = clamp(1000 * rel_l1(modulation), 0, 2)\n", 1).replace(
    "residual }", "residual  reuse as kept(residual) + moved * (kept(residual) - kept(residual, 2)) }"
)


def test_a_weight_is_measured_where_the_clock_decides(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """The plan knows every decision, and the graph is asked for the weight all the same; folded or not."""
    runs = []
    for fold in (True, False):
        clock = Timeline("request", GRID, steps_in_order(GRID))
        made = api.compile(
            small_wan, Source("p.policy", WEIGHED), backend="eager", captured=captured_wan, clock=clock, fold=fold
        )
        found = []
        for clock.row in range(STEPS):
            found.append(made(**call(clock.row))[0])
        runs.append(found)
        assert {event.action for event in made.events} == {"full", "reuse"}
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b)
    plain = Source("p.policy", STATIC)
    clock = Timeline("request", GRID, steps_in_order(GRID))
    last = api.compile(small_wan, plain, backend="eager", captured=captured_wan, clock=clock)
    kept = []
    for clock.row in range(STEPS):
        kept.append(last(**call(clock.row))[0])
    assert not torch.equal(kept[4], runs[0][4])
