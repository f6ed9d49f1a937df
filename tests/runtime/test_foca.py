"""FoCa: stand-ins that read what layers gave one and two steps ago, against cache-dit's loop in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.resources import data_folder
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_forecast import GRID, STEPS, assert_residuals_are_predicted, by_hand, compiled, outputs, policy

NEAR = "kept(residual) + before(residual) - before(before(residual))"


class FoCa(nn.Module):
    """All blocks in one, by hand. values: what they gave at every step; full: (step, residual) of computations."""

    def __init__(self, blocks: Sequence[nn.Module], interval: int, warmup: int, per_step: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.interval, self.warmup, self.per_step, self.step = interval, warmup, per_step, 0
        self.values, self.full = list[torch.Tensor](), list[tuple[int, torch.Tensor]]()

    def forecast(self) -> torch.Tensor:
        """From the last computation by the trapezoidal rule; beyond three steps it is drawn back to it."""
        if len(self.full) < 2:
            return self.full[-1][1]
        (earlier, old), (at, new) = self.full[-2:]
        elapsed = self.step - at
        slope = (new - old) / (at - earlier if self.per_step else 1)
        local = self.values[-1] - self.values[-2]
        if elapsed <= 3:
            return new + elapsed / 2 * (slope + local)
        share = 3 / elapsed
        return share * (new + 3 / 2 * (slope + local)) + (1 - share) * new

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        if self.step < self.warmup or (self.step - self.warmup) % self.interval == 0:
            out = h
            for block in self.blocks:
                out = block(out, *more)
            self.full.append((self.step, out - h))
            self.values.append(out - h)
            return out
        self.values.append(self.forecast())
        return h + self.values[-1]


@pytest.mark.parametrize(("interval", "warmup"), [(5, 3), (2, 3), (3, 1)])
@pytest.mark.parametrize("per_step", [True, False])
def test_foca(
    interval: int, warmup: int, per_step: bool, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """The shipped policy has slopes per step; cache-dit takes the difference of two computations as it is."""
    text = (data_folder("policies") / "foca.policy").read_text(encoding="utf-8")
    if not per_step:
        text = text.replace("1 / (kept(step) - kept(step, 2))", "1")
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(
        small_wan, Source("foca.policy", text), backend="eager", captured=captured_wan, clock=clock,
        interval=interval, warmup=warmup,
    )  # fmt: skip
    plain = FoCa(list(small_wan.blocks), interval, warmup, per_step)
    rows = range(STEPS)
    for row, (ours, theirs) in enumerate(zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    assert len(plain.full) < STEPS == len(plain.values)


def test_each_token_reads_its_own_last_steps(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Tokens that were computed one step ago and tokens that were not have both given something there."""
    signal = "signal moved = rel_l1(latent, over = token)"
    rule = "reuse token while accumulate(moved) < 0.2"
    made, clock = compiled(small_wan, captured_wan, policy(NEAR, rule, 2, signal))
    runner = made.runner
    (pair,) = runner.lowered.regions[0].pairs
    seen: list[torch.Tensor] = []
    run, runner.masks = runner.engine.postlude.run, []

    def watched(env, *more):  # type: ignore[no-untyped-def]
        seen.append(env[pair[1]] - env[pair[0]])
        return run(env, *more)

    runner.engine.postlude.run = watched  # type: ignore[method-assign]
    outputs(made, clock, range(STEPS))
    kept, kinds = torch.zeros_like(seen[0]), set()
    for row, (given, mask) in enumerate(zip(seen, runner.masks, strict=True)):
        computed = torch.from_numpy(mask.reshape(-1))
        kept[:, computed] = given[:, computed]
        if row >= 2:
            wanted = kept + seen[row - 1] - seen[row - 2]
            torch.testing.assert_close(given[:, ~computed], wanted[:, ~computed], rtol=1e-4, atol=1e-5)
            kinds |= set(zip(runner.masks[row - 1].reshape(-1).tolist(), computed.tolist(), strict=True))
    assert {(True, False), (False, False)} <= kinds  # (computed a step ago, computed now)


@pytest.mark.parametrize("rule", ["compute every 3 steps", "reuse token while rel_l1(latent, over = token) < 0.1"])
def test_what_it_keeps_is_predicted(
    rule: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    made, clock = compiled(small_wan, captured_wan, policy(NEAR, rule))
    outputs(made, clock, range(4))
    assert_residuals_are_predicted(made, 3)  # the last one, and two steps
