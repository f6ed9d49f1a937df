"""A latent of sound beside that of the video, and the timestep given twice (LTX-2): neither is a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mccompile import compile
from mccompile.capture import capture
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import Timeline, steps_in_order
from tests.runtime.test_calls import DIM, EVERY_SECOND, GRID, STEPS, TEXT


class Block(nn.Module):
    """Video and sound attend to each other's tokens, and to the text."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(
        self, x: torch.Tensor, sound: torch.Tensor, text: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = self.qkv(torch.cat([x, sound, text], 1) + time).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + y[:, : x.shape[1]], sound + y[:, x.shape[1] : x.shape[1] + sound.shape[1]]


class Sounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(
        self, x: torch.Tensor, sound: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time = (timestep + 2 * sigma)[:, None, None] * 0.001
        for block in self.blocks:
            x, sound = block(x, sound, text, time)
        return x.sin(), sound.sin()


def call(rows: int, sounds: int = 4, step: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(step)
    x, sound = (torch.randn(1, n, DIM, generator=made) for n in (rows, sounds))
    at = torch.tensor([GRID.timesteps[step]])
    return {"x": x, "sound": sound, "text": TEXT, "timestep": at, "sigma": at.clone()}


def test_steps_are_reused_although_the_sound_changes() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sounding().eval().requires_grad_(False)
    found = capture(model, call(6), call(10, 7))
    assert {"sound", "sigma"} <= set(found.moving)
    assert "text" not in found.moving
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", EVERY_SECOND)
    compiled = compile(model, policy, probe=call(6), second=call(10, 7), clock=clock, backend="eager")  # type: ignore[arg-type]
    for clock.row in range(STEPS):
        compiled(**call(8, 5, clock.row))
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
