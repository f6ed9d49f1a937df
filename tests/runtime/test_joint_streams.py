"""Models whose later blocks take text and video as one stream, which no earlier part of the model makes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile import api, compile
from mccompile.diagnostics.source import Source
from mccompile.generate.part_laws import rows_apart
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.errors import NoForecast

DIM, STEPS = 8, 3
GRID = Grid(STEPS, (900.0, 600.0, 300.0), (0.9, 0.6, 0.3))
TOP = """policy top {
  param part = 100% in 0%..100%
  signal motion = frame_diff(latent)
  phase rest { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v)


class Double(Single):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        joint = super().forward(torch.cat([text, x], 1))
        return joint[:, text.shape[1] :], text + self.text(joint[:, : text.shape[1]])


class Joining(nn.Module):
    """Two blocks on two streams, then two on their concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(2, DIM, (1, 2, 2), (1, 2, 2)), nn.Linear(DIM, 8)
        self.pairs = nn.ModuleList([Double(), Double()])
        self.joined = nn.ModuleList([Single(), Single()])

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        for block in self.pairs:
            x, text = block(x, text)
        joint = torch.cat([text, x], 1)
        for block in self.joined:
            joint = block(joint)
        return self.head(joint[:, text.shape[1] :])  # type: ignore[no-any-return]


def call(frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
    return {"hidden_states": torch.randn(1, 2, frames, height, width), "text": torch.randn(1, 3, DIM)}


def test_keys_of_a_stream_that_later_blocks_make_are_kept() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Joining().eval().requires_grad_(False)
        probe, second, given = call(4, 4, 6), call(6, 6, 10), call(5, 6, 8)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", TOP)
    compiled = compile(model, policy, probe=probe, second=second, clock=clock, backend="eager")  # type: ignore[arg-type]
    assert compiled.runner.engine.uses_rows
    for clock.row in range(STEPS):
        given["hidden_states"] = given["hidden_states"] * 0.5 + clock.row
        assert torch.allclose(compiled(**given), model(**given), atol=1e-5)


def test_text_takes_from_no_token() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Joining().eval().requires_grad_(False)
        calls = {"probe": call(4, 4, 6), "second": call(6, 6, 10)}
    text = TOP.replace("keep residual }", "keep residual  reuse as nearest(residual, by = embedded) }")
    with pytest.raises(NoForecast, match=r"take from tokens of the video, and `\w+` has other rows"):
        compile(model, Source("test.policy", text), clock=Timeline("run", GRID, ()), backend="eager", **calls)  # type: ignore[arg-type]


class Decoding(nn.Module):
    """Two blocks on the tokens, then two that join what these made with the embedded latent anew (Motif-Video)."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(2, DIM, (1, 2, 2), (1, 2, 2)), nn.Linear(DIM, 8)
        self.first = nn.ModuleList([Single(), Single()])
        self.later = nn.ModuleList([Double(), Double()])
        self.turned = turned

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        anew = x.flip(1) if self.turned else x.clone()
        for block in self.first:
            x = block(x)
        for block in self.later:
            anew, x = block(anew, x)
        return self.head(anew)  # type: ignore[no-any-return]


def decoding(turned: bool) -> tuple[nn.Module, api.Prepared, dict[str, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Decoding(turned).eval().requires_grad_(False)
        probe, second, given = (
            {"hidden_states": torch.randn(1, 2, *size)} for size in ((4, 4, 6), (6, 6, 10), (5, 6, 8))
        )
    return model, api.prepare(model, probe=probe, second=second), given


def test_a_stream_of_the_same_tokens_that_a_later_block_takes_runs_by_rows() -> None:
    model, prepared, given = decoding(turned=False)
    captured = prepared.model
    assert captured.refusals == ()
    assert {p.rows for p in captured.streams} == {"video"}  # of what nothing reads too
    assert captured.row_keys == ("video", "video+video")
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", TOP)
    compiled = compile(model, policy, captured=prepared, clock=clock, backend="eager", part=0.4)  # type: ignore[arg-type]
    assert compiled.runner.engine.uses_rows
    for clock.row in range(STEPS):
        given["hidden_states"] = given["hidden_states"] * 0.5 + clock.row
        off = float((compiled(**given) - model(**given)).abs().max())
        assert (off < 1e-5) == (clock.row == 0)
    for row in prepared.calls:
        assert rows_apart(captured, row)[0] < 1e-5


def test_tokens_in_another_order_are_not_those_of_the_latent() -> None:
    """Selected rows of such a stream would be of other places than those of the latent that were chosen."""
    model, prepared, given = decoding(turned=True)
    assert {p.rows for p in prepared.model.streams if p.name in prepared.model.exit} == {""}
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", TOP)
    compiled = compile(model, policy, captured=prepared, clock=clock, backend="eager")  # type: ignore[arg-type]
    assert torch.allclose(compiled(**given), model(**given), atol=1e-5)
