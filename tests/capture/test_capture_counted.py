"""Text of which a mask counts the rows: its length is read from the mask, at any prompt."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mccompile.api as api
from mccompile.api import Prepared
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order

DIM, TEXT, STEPS = 16, 7, 4
SIZES = ((3, 4, 6), (5, 6, 10), (4, 8, 6))  # two for capture, one never shown to it
GRID = Grid(STEPS, tuple(900.0 - 200 * i for i in range(STEPS)), tuple(0.9 - 0.2 * i for i in range(STEPS)))
TOKENS = """policy tokens {
  param part = 100% in 0%..100%
  signal motion = frame_diff(embedded)
  phase warmup for 1 step { compute }
  phase rest { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x, [DIM]) * (1 + time)
        k, v = self.kv(normed).chunk(2, -1)
        return x + self.out(F.scaled_dot_product_attention(self.q(normed), k, v))


class Counted(nn.Module):
    """The rows of the text that count, then the video: joined, or written into a stream of zeros sample by sample."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written = written
        self.embed = nn.Conv3d(4, DIM, (1, 2, 2), (1, 2, 2))
        self.time = nn.Linear(1, DIM)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(DIM, 16)

    def joined(self, text: torch.Tensor, mask: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        if not self.written:
            count = mask.sum(1, dtype=torch.int)
            return torch.cat([text[:, : count[0]], video], 1)
        counts = mask.sum(1).tolist()
        lengths = [count + video.shape[1] for count in counts]
        x = video.new_zeros(len(counts), max(lengths), DIM)
        for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            x[i, :count] = text[i, :count]
            x[i, count:length] = video[i]
        assert len(set(lengths)) == 1
        return x

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        video = self.embed(hidden_states).flatten(2).transpose(1, 2)
        x = self.joined(text, mask, video)
        time = self.time(timestep[:, None, None] / 1000)
        for block in self.blocks:
            x = block(x, time)
        return self.head(x[:, x.shape[1] - video.shape[1] :])


def call(size: tuple[int, int, int], counted: int, seed: int = 0) -> dict[str, object]:
    noise = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, TEXT, dtype=torch.bool)
    mask[:, :counted] = True
    return {
        "hidden_states": torch.randn(1, 4, *size, generator=noise), "timestep": torch.tensor([500.0]),
        "text": torch.randn(1, TEXT, DIM, generator=torch.Generator().manual_seed(9)), "mask": mask,
    }  # fmt: skip


@cache
def prepared(written: bool) -> tuple[nn.Module, Prepared]:
    """Both calls are of one prompt, of which five rows count."""
    torch.manual_seed(3)
    model = Counted(written).eval().requires_grad_(False)
    return model, api.prepare(model, probe=call(SIZES[0], 5), second=call(SIZES[1], 5))


@pytest.mark.parametrize("written", [False])
def test_tokens_run_alone_at_any_number_of_rows_that_count(written: bool) -> None:
    model, found = prepared(written)
    assert not found.model.opaque
    assert not found.model.refusals
    clock = Timeline("run", GRID, steps_in_order(GRID))
    for counted in (5, 3, 7):
        text = Source("counted.policy", TOKENS)
        compiled = api.compile(model, text, captured=found, clock=clock, backend="eager")
        for clock.row in range(STEPS):
            given = call(SIZES[2], counted, clock.row)
            (made,), wanted = compiled(**given), model(**given)
            assert float((made - wanted).abs().max()) < 1e-5
        assert compiled.runner.engine.uses_rows


def test_the_text_of_the_next_request_may_be_longer() -> None:
    model, found = prepared(False)
    clock = Timeline("none", GRID, steps_in_order(GRID))
    compiled = api.compile(
        model, Source("counted.policy", TOKENS), captured=found, clock=clock, backend="eager", part=0.4
    )
    for counted in (3, 6):
        clock = compiled.clock = Timeline(f"{counted} rows", GRID, steps_in_order(GRID))
        for clock.row in range(STEPS):
            (made,) = compiled(**call(SIZES[2], counted, clock.row))
        assert made.isfinite().all()
        assert not torch.equal(made, model(**call(SIZES[2], counted, STEPS - 1)))
    assert {event.action for event in compiled.events} >= {"full", "partial"}
