"""Video tokens that are one segment of a stream: registers or history in front of them, text behind.

Sources, layout and observation read the segment; policies by step, chunk and token run as they do on a stream of
video tokens alone.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mccompile.api as api
from mccompile.capture.rows import RowSpan, beside_video, between, other, video
from mccompile.capture.types import Beside
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.trace import share_computed

DIM, STEPS = 16, 4
SIZES = ((3, 4, 6), (5, 6, 10), (4, 8, 6))  # two for capture, one never shown to it
GRID = Grid(STEPS, tuple(900.0 - 200 * i for i in range(STEPS)), tuple(0.9 - 0.2 * i for i in range(STEPS)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x, [DIM]) * (1 + time)
        k, v = self.kv(normed).chunk(2, -1)
        return x + self.out(F.scaled_dot_product_attention(self.q(normed), k, v))


class Mixed(nn.Module):
    """One stream: registers, then history where the call has some, then the video, then text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(4, DIM, (1, 2, 2), (1, 2, 2))
        self.registers = nn.Parameter(torch.randn(1, 3, DIM))
        self.time = nn.Linear(1, DIM)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(DIM, 16)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor | None = None,
        history: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tokens = self.embed(hidden_states).flatten(2).transpose(1, 2)
        count = tokens.shape[1]
        parts = [self.registers.expand(tokens.shape[0], -1, -1)]
        if history is not None:
            parts.append(self.embed(history).flatten(2).transpose(1, 2))
        parts.append(tokens)
        x = torch.cat([*parts, text] if text is not None else parts, 1)
        time = self.time(timestep[:, None, None] / 1000)
        for block in self.blocks:
            x = block(x, time)
        x = x[:, : x.shape[1] - text.shape[1]] if text is not None else x
        return self.head(x[:, x.shape[1] - count :])


def call(kind: str, size: tuple[int, int, int], seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, 4, *size, generator=made)
    found = {"hidden_states": latent, "timestep": torch.tensor([900.0 - 200 * seed])}
    if kind == "text":
        found["text"] = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(1))
    if kind == "history":
        found["history"] = torch.randn(1, 4, 2, *size[1:], generator=torch.Generator().manual_seed(2))
    return found


KINDS = {"registers": "3+video", "text": "3+video+5", "history": "15|33+video"}


@cache
def prepared(kind: str) -> tuple[Mixed, api.Prepared]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixed().eval().requires_grad_(False)
    return model, api.prepare(model, probe=call(kind, SIZES[0], 0), second=call(kind, SIZES[1], 0))


POLICIES = {
    "tokens": """param part = 40% in 0%..100%
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 1 step { compute }
  phase fine { compute top part of tokens by motion }""",
    "chunks": """param threshold = 0.5 in 0..100
  signal drift = rel_l1(embedded)
  phase warmup for 1 step { compute }
  phase rest { reuse chunk while accumulate(drift) < threshold }""",
    "modulated": """param threshold = 0.5 in 0..100
  signal drift = rel_l1(modulated_input, over = step)
  phase warmup for 1 step { compute }
  phase rest { reuse step while accumulate(drift) < threshold }""",
}


def run(kind: str, policy: str, **parameters: float) -> tuple[list[float], float]:
    """The largest difference from the model per step, and the share of tokens computed."""
    model, captured = prepared(kind)
    text = f"""policy {policy} {{
  {POLICIES[policy]}
  layers blocks[*] {{ keep residual }}
}}
"""
    clock = Timeline("run", GRID, steps_in_order(GRID, 2))
    compiled = api.compile(
        model, Source("segments.policy", text), captured=captured, clock=clock, backend="eager", **parameters
    )
    wrong = []
    for step in range(STEPS):
        clock.row = step
        given = call(kind, SIZES[2], step)
        with torch.no_grad():
            wrong.append(float((compiled(**given) - model(**given)).abs().max()))
    return wrong, share_computed(compiled.events)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_segment_is_found(kind: str) -> None:
    captured = prepared(kind)[1].model
    assert {p.rows for p in captured.streams} == {KINDS[kind]}
    assert captured.grid is not None
    assert captured.refusals == ()
    assert captured.unbatched == ""


@pytest.mark.parametrize("kind", list(KINDS))
def test_policies_by_token_chunk_and_step_read_the_segment(kind: str) -> None:
    wrong, share = run(kind, "tokens", part=1.0)
    assert (max(wrong) < 1e-5, share) == (True, 1.0)
    wrong, share = run(kind, "tokens", part=0.25)
    assert 0.4 < share < 0.5  # a quarter after one step of four that computes all
    assert wrong[0] < 1e-5 < max(wrong)
    for policy in ("chunks", "modulated"):
        wrong, share = run(kind, policy, threshold=0.0)
        assert (max(wrong) < 1e-5, share) == (True, 1.0)
        _, share = run(kind, policy, threshold=100.0)
        assert share == 1 / STEPS


def test_where_the_tokens_lie_beside_others() -> None:
    tokens = video((6, 10))
    assert beside_video((*other((3, 3)), tokens, *other((2, 2)))) == Beside(3, 2)
    assert beside_video((*other((3, 5)), tokens)) == Beside(None, 0)
    assert beside_video(other((3, 3))) is None
    assert beside_video(between((tokens,), (0, 0), (2, 2))) is None
    assert (Beside(3, 2).tokens(11), Beside(3, 2).start(11, 6)) == (6, 3)
    assert (Beside(None, 2).tokens(11), Beside(None, 2).start(11, 6)) == (None, 3)
    assert not Beside(None, None).located
    assert isinstance(tokens, RowSpan)
