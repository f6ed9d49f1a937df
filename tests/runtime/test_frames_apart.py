"""Frames that lie with the samples, [samples * frames, places, channels]: they are frames, and no samples.

The blocks write in place. Other blocks get the tokens of all frames together (capture/together.py).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile import api
from mccompile.capture.types import TokenGrid
from mccompile.diagnostics.source import Source
from mccompile.lowering.lower import ONLY_COMPUTES
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel

DIM, STEPS, FRAMES = 12, 4, 3
GRID = Grid(STEPS, tuple(900.0 - 200 * i for i in range(STEPS)), tuple(0.9 - 0.2 * i for i in range(STEPS)))
DRIFT = """policy drift {
  param threshold = 0.5 in 0..100
  signal moved = rel_l1(embedded, over = step)
  phase first for 1 step { compute }
  phase rest { reuse step while moved < threshold }
  layers blocks[*] { keep residual }
}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.out(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)))
        made.mul_(0.5)
        return x + made


class Axial(nn.Module):
    """Blocks in turn over the places of a frame, and over the frames of a place. Their number is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(4, DIM, 2, 2), nn.Linear(DIM, 16)
        self.spatial, self.temporal = (nn.ModuleList([Block(), Block()]) for _ in range(2))
        self.frames = nn.Parameter(torch.randn(1, FRAMES, DIM))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        count, _, _, height, width = hidden_states.shape
        x = self.embed(hidden_states.permute(0, 2, 1, 3, 4).flatten(0, 1)).flatten(2).transpose(1, 2)
        for i, (spatial, temporal) in enumerate(zip(self.spatial, self.temporal, strict=True)):
            x = spatial(x)
            x = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
            x = temporal(x + self.frames if i == 0 else x)
            x = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
        made = self.head(x).unflatten(0, (count, -1)).unflatten(2, (height // 2, width // 2)).unflatten(-1, (4, 2, 2))
        return made.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


@cache
def prepared() -> tuple[nn.Module, api.Prepared]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Axial().eval().requires_grad_(False)
        probe, second = ({"hidden_states": torch.randn(1, 4, FRAMES, *size)} for size in ((4, 6), (6, 10)))
    return model, api.prepare(model, probe=probe, second=second)


def run(latents: list[torch.Tensor], **values: float) -> CompiledModel:
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("t.policy", DRIFT)
    compiled = api.compile(prepared()[0], policy, captured=prepared()[1], clock=clock, backend="eager", **values)
    for clock.row, latent in enumerate(latents):
        compiled(hidden_states=latent)
    return compiled


def test_the_frames_are_found() -> None:
    captured = prepared()[1].model
    assert captured.grid == TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2), apart=True)


def test_an_event_is_about_a_sample_of_all_frames() -> None:
    events = run([torch.randn(2, 4, FRAMES, 6, 8)] * 2).events
    assert [(e.sample, e.action, e.tokens) for e in events] == [
        (sample, action, FRAMES * 12) for action in ("full", "reuse") for sample in (0, 1)
    ]


def test_where_no_token_is_picked_none_takes_from_another() -> None:
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(prepared()[0], "merge", captured=prepared()[1], clock=clock, backend="eager")
    assert compiled.refusals[-1].reason == ONLY_COMPUTES
    for clock.row in range(2):
        latent = torch.randn(1, 4, FRAMES, 6, 8)
        assert torch.equal(compiled(hidden_states=latent), prepared()[0](latent))
    assert {e.action for e in compiled.events} == {"full"}
    assert compiled.runner.requests["run"].branches["cond"].memory.nbytes() == 0


@pytest.mark.parametrize(("moved", "action"), [(1, "reuse"), (FRAMES, "full")])
def test_a_step_is_decided_by_all_frames(moved: int, action: str) -> None:
    """One frame of three that becomes another is a third of the change: no frame decides for itself."""
    first = torch.randn(1, 4, FRAMES, 6, 8, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[:, :, :moved] = torch.randn(1, 4, moved, 6, 8, generator=torch.Generator().manual_seed(1))
    assert [e.action for e in run([first, second], threshold=0.9).events] == ["full", action]
