"""Blocks that take their tokens apart into frames to modulate them, as Self-Forcing's do: rows of them run alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CapturedModel, capture, flat_inputs, run_full

DIM = 8
Modulate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # tokens [B, F, S, C] and [B, F, 2, C] to tokens


def scaled(x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    shift, scale = e.chunk(2, dim=2)
    return x * (1 + scale) + shift


def from_the_first(x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return x + e[:, :, :1] * x[:, :1]  # a frame reads another one


def averaged(x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return x - x.mean(2, keepdim=True) + e[:, :, :1]  # tokens of a frame are mixed


class Block(nn.Module):
    def __init__(self, modulate: Modulate) -> None:
        super().__init__()
        self.qkv, self.modulate = nn.Linear(DIM, 3 * DIM), modulate
        self.own = nn.Parameter(torch.randn(1, 1, 2, DIM))

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        frames = e.shape[1]
        y = x.unflatten(1, (frames, x.shape[1] // frames))
        y = self.modulate(y, e + self.own).flatten(1, 2)
        q, k, v = self.qkv(y).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v)


class Model(nn.Module):
    def __init__(self, modulate: Modulate) -> None:
        super().__init__()
        self.embed, self.time = nn.Conv3d(4, DIM, (1, 2, 2), (1, 2, 2)), nn.Linear(1, 2 * DIM)
        self.blocks = nn.ModuleList(Block(modulate) for _ in range(2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x, e = self.embed(x).flatten(2).transpose(1, 2), self.time(t[..., None]).unflatten(-1, (2, DIM))
        for block in self.blocks:
            x = block(x, e)
        return x


def call(frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(1, 4, frames, height, width), "t": torch.rand(1, frames)}


def captured(modulate: Modulate) -> tuple[Model, CapturedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(modulate).eval().requires_grad_(False)
        return model, capture(model, call(3, 8, 12), call(5, 12, 20))


def test_frames_are_repeated_over_their_tokens_before_the_blocks() -> None:
    """The proof has compared rows; the numbers are the model's own, bit for bit."""
    model, found = captured(scaled)
    assert found.refusals == ()
    assert {port.rows for port in found.shared if port.depends == {"t"}} == {"video"}
    assert {port.rows for port in found.sources if port.depends == {"t"}} == {"frame"}
    given = call(4, 8, 8)
    with torch.no_grad():
        assert torch.equal(run_full(found, flat_inputs(found, given)).outputs[0], model(**given))


@pytest.mark.parametrize("modulate", [from_the_first, averaged])
def test_tokens_that_read_others_stay_apart(modulate: Modulate) -> None:
    model, found = captured(modulate)
    assert found.kinds[0].partial is not None
    assert any("token axis" in mixing.reason for mixing in found.kinds[0].mixing)
    given = call(4, 8, 8)
    with torch.no_grad():
        assert torch.equal(run_full(found, flat_inputs(found, given)).outputs[0], model(**given))
