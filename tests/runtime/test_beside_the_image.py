"""Images that an editing model is given: their tokens lie behind those of the image that is made, in one input."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile import api
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.trace import share_computed

DIM, STEPS = 12, 4
GRID = Grid(STEPS, tuple(900.0 - 200 * i for i in range(STEPS)), tuple(0.9 - 0.2 * i for i in range(STEPS)))
MADE = (4, 6)  # rows and columns of the image that is made
TOP = """policy top {
  param part = 25% in 0%..100%
  signal moved = rel_l1(embedded, over = token)
  phase warmup for 1 step { compute }
  phase rest { compute top part of tokens by moved }
  layers blocks[*] { keep residual }
}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q * turn, k * turn, v))


class Editing(nn.Module):
    """Takes what is made and what is given as one latent, and a position for each of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, hidden_states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        turn = torch.cat([torch.cos(places / 10)] * (DIM // 3), -1)
        x = self.embed(hidden_states)
        for block in self.blocks:
            x = block(x, turn)
        return self.head(x)


def positions(*images: tuple[int, int]) -> torch.Tensor:
    return torch.cat(
        [torch.cartesian_prod(torch.tensor([10.0 * i]), torch.arange(float(h)), torch.arange(float(w)))
         for i, (h, w) in enumerate(images)]
    )  # fmt: skip


def call(step: int, *images: tuple[int, int], samples: int = 1) -> dict[str, torch.Tensor]:
    """All is another at each step: what is given too, so that its last rows are told from earlier ones."""
    given = sum(h * w for h, w in images[1:])
    seeds = torch.Generator().manual_seed(step), torch.Generator().manual_seed(99 + step)
    made = torch.randn(samples, images[0][0] * images[0][1], DIM, generator=seeds[0])
    return {
        "hidden_states": torch.cat([made, torch.randn(samples, given, DIM, generator=seeds[1])], 1),
        "places": positions(*images),
    }


@cache
def prepared(given: bool) -> tuple[nn.Module, api.Prepared]:
    """Captured with an image that is given, or without one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Editing().eval().requires_grad_(False)
    more = [(3, 5)] if given else []
    return model, api.prepare(model, probe=call(0, (4, 8), *more), second=call(0, (6, 10), *more))


def run(
    policy: str, given: bool, *images: tuple[int, int], samples: int = 1, **values: float
) -> tuple[CompiledModel, list[float]]:
    """How far each step is from the model."""
    model, captured = prepared(given)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    compiled = api.compile(model, Source("t.policy", policy), captured=captured, clock=clock, backend="eager", **values)
    off = []
    for clock.row in range(STEPS):
        asked = call(clock.row, *images, samples=samples)
        off.append(float((compiled(**asked) - model(**asked)).abs().max()))
    return compiled, off


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("images", [(MADE,), (MADE, (5, 3)), (MADE, MADE), (MADE, (2, 2), (3, 7))])
def test_the_image_that_is_made_is_decided_about(given: bool, images: tuple[tuple[int, int], ...]) -> None:
    compiled, off = run(TOP, given, *images, part=1.0)
    assert compiled.runner.engine.uses_rows
    assert (max(off) < 1e-5, {event.tokens for event in compiled.events}) == (True, {24})
    compiled, off = run(TOP, given, *images)
    assert share_computed(compiled.events) == (1 + 3 * 0.25) / 4
    assert off[0] < 1e-5 < min(off[1:])


def test_the_image_that_is_given_is_computed_with_any_token() -> None:
    """A block's keys and values of what is given are those of this step, though a quarter of the tokens was chosen."""
    compiled, _ = run(TOP, True, MADE, (5, 3), samples=2)
    model, _ = prepared(True)
    store = compiled.runner.requests["run"].branches["cond"]
    hidden = call(STEPS - 1, MADE, (5, 3), samples=2)["hidden_states"]
    assert isinstance(model, Editing)
    keys = model.blocks[0].qkv(model.embed(hidden)).chunk(3, -1)[1]
    turn = torch.cat([torch.cos(positions(MADE, (5, 3)) / 10)] * (DIM // 3), -1)
    kept = store.memory.buffers[0][0]
    assert torch.allclose(kept[:, 24:], (keys * turn)[:, 24:], atol=1e-5)
    assert not torch.allclose(kept[:, :24], (keys * turn)[:, :24], atol=1e-5)


def test_what_lies_behind_is_in_no_forecast() -> None:
    """Their rows were computed at other steps than each token's, so no weights of the tokens are theirs."""
    text = TOP.replace("keep residual }", "keep residual  reuse as taylor(residual) }")
    run(text, True, MADE)
    with pytest.raises(NoForecast):
        run(text, True, MADE, (5, 3))


def test_no_token_takes_from_another_where_some_lie_behind() -> None:
    text = TOP.replace("keep residual }", "keep residual  reuse as nearest(residual, by = embedded) }")
    compiled, _ = run(text, True, MADE)
    assert {e.action for e in compiled.events} == {"full", "partial"}
    with pytest.raises(NoForecast, match="images that are given lie behind"):
        run(text, True, MADE, (5, 3))
