"""A latent of sound beside that of the video, and the timestep given twice (LTX-2): neither is a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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
        times = timestep if timestep.dim() > 1 else timestep[:, None]
        time = (times + 2 * sigma[:, None])[..., None].amax(1, keepdim=True) * 0.001
        for block in self.blocks:
            x, sound = block(x, sound, text, time)
        return x.sin(), sound.sin()


def call(rows: int, sounds: int = 4, step: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(step)
    x, sound = (torch.randn(1, n, DIM, generator=made) for n in (rows, sounds))
    at = torch.tensor([GRID.timesteps[step]])
    return {"x": x, "sound": sound, "text": TEXT, "timestep": at, "sigma": at.clone()}


def by_token(rows: int, sounds: int = 4, step: int = 0) -> dict[str, torch.Tensor]:
    """A timestep for each token, 0 at the first, as pipelines give it whose first frame is an image."""
    one = call(rows, sounds, step)
    return one | {"timestep": one["timestep"].expand(1, rows) * (torch.arange(rows) > 0)}


@pytest.mark.parametrize("calls", [call, by_token])
def test_steps_are_reused_although_the_sound_changes(calls: Callable[..., dict[str, torch.Tensor]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sounding().eval().requires_grad_(False)
    found = capture(model, calls(6), calls(10, 7))
    assert {"sound", "sigma"} <= set(found.moving)
    assert "text" not in found.moving
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", EVERY_SECOND)
    compiled = compile(model, policy, probe=calls(6), second=calls(10, 7), clock=clock, backend="eager")  # type: ignore[arg-type]
    for clock.row in range(STEPS):
        compiled(**calls(8, 5, clock.row))
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]


class Added(nn.Module):
    """A block that adds what a control network gives."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor, time: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x + time).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v) + control


class Controlled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Added(), Added()])

    def forward(self, x: torch.Tensor, controls: list[torch.Tensor], timestep: torch.Tensor) -> torch.Tensor:
        for block, control in zip(self.blocks, controls, strict=True):
            x = block(x.sin(), timestep[:, None, None] * 0.001, control)
        return x


def controlled(rows: int, step: int = 0) -> dict[str, object]:
    made = torch.Generator().manual_seed(step)
    x, *controls = (torch.randn(1, rows, DIM, generator=made) for _ in range(3))
    return {"x": x, "controls": controls, "timestep": torch.tensor([GRID.timesteps[step]])}


def test_what_a_control_network_gives_in_each_step_is_no_prompt() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Controlled().eval().requires_grad_(False)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", EVERY_SECOND)
    compiled = compile(model, policy, probe=controlled(6), second=controlled(10), clock=clock, backend="eager")
    captured = compiled.runner.lowered.captured
    assert captured.kinds[0].partial is not None
    assert {p.name for p in captured.shared if p.token_axis is not None} == {"controls_0", "controls_1"}
    for clock.row in range(STEPS):
        compiled(**controlled(8, clock.row))
    assert [event.action for event in compiled.events] == ["full", "reuse", "full", "reuse"]
