"""ToCa and DuCa with the scores that need no attention map, against their rule in plain PyTorch, part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_forecast import GRID, STEPS, call

RATIO, HUNGER, INTERVAL, FIRST = 0.3, 0.25, 4, 3
FRAMES, TOKENS = 3, 48


class ByTokens(nn.Module):
    """A block of Wan as it is written, of which each part adds what it adds now or what it added before."""

    def __init__(self, block: nn.Module, alternates: bool, depth: float) -> None:
        super().__init__()
        self.block, self.alternates, self.step, self.depth = block, alternates, 0, depth
        self.kept, self.last = dict[str, torch.Tensor](), dict[str, torch.Tensor]()

    def selected(self, part: str, x: torch.Tensor) -> torch.Tensor:
        """The tokens that a part computes, bool [TOKENS]."""
        if self.step < FIRST or (self.step - FIRST) % INTERVAL == 0:
            return torch.ones(TOKENS, dtype=torch.bool)
        share = RATIO * (self.step % 2 if self.alternates else 1.5 - self.depth)
        if part == "attn" or share == 0:
            return torch.zeros(TOKENS, dtype=torch.bool)
        size = x[0].square().mean(-1).sqrt().reshape(FRAMES, -1)
        size = (size / size.amax(1, keepdim=True)).reshape(-1)
        score = size + HUNGER * (self.step - self.last[part]) / INTERVAL
        chosen = score.argsort(descending=True, stable=True)[: -int(-share * TOKENS // 1)]
        return torch.zeros(TOKENS, dtype=torch.bool).index_fill(0, chosen, True)

    def added(self, part: str, x: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        mask, made = self.selected(part, x), make()
        kept, last = self.kept.get(part, made), self.last.get(part, torch.zeros(TOKENS))
        self.kept[part] = torch.where(mask[None, :, None], made, kept)
        self.last[part] = torch.where(mask, float(self.step), last)
        return x + self.kept[part]

    def forward(self, x: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, rotary: object) -> torch.Tensor:
        b = self.block
        shift, scale, gate, shift2, scale2, gate2 = (b.scale_shift_table + temb.float()).chunk(6, dim=1)
        x = self.added("attn", x, lambda: b.attn1(b.norm1(x) * (1 + scale) + shift, None, None, rotary) * gate)
        y = self.added("cross", x, lambda: b.attn2(b.norm2(x), text, None, None))
        return self.added("ffn", y, lambda: b.ffn(b.norm3(y) * (1 + scale2) + shift2) * gate2)


@pytest.mark.parametrize("policy", ["toca", "duca"])
def test_tokens_are_those_of_the_rule(
    policy: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(
        small_wan, policy, backend="eager", captured=captured_wan, clock=clock, ratio=RATIO, interval=INTERVAL
    )
    ours = []
    for clock.row in range(STEPS):
        ours.append(made(**call(clock.row))[0])
    own, last = small_wan.blocks, len(small_wan.blocks) - 1
    blocks = [ByTokens(block, policy == "duca", number / last) for number, block in enumerate(own)]
    small_wan.blocks = nn.ModuleList(blocks)
    try:
        for row, found in enumerate(ours):
            for block in blocks:
                block.step = row
            wanted = small_wan(**call(row))[0]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    finally:
        small_wan.blocks = own
    computed = {(e.step, e.region): e.computed for e in made.events}
    for row in range(STEPS):
        full = row < FIRST or (row - FIRST) % INTERVAL == 0
        first, other = (0 if row % 2 == 0 else 15,) * 2 if policy == "duca" else (22, 8)
        assert computed[row, "attn"] == (TOKENS if full else 0)
        assert computed[row, "rest[0].cross"] == (TOKENS if full else first)
        assert computed[row, "rest[1].ffn"] == (TOKENS if full else other)
