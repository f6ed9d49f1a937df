"""Few-step autoregressive models (Self-Forcing, Causal-Forcing): chunk by chunk, keys and values given and returned."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import mccompile.api as api
from mccompile.capture import TokenGrid
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel
from tests.causal_wan import CHANNELS, DIM, FRAMES, HEADS, STEPS, TEXT, TEXT_DIM, CausalWan, KeyValues, Rollout

GRID = Grid(len(STEPS), STEPS, tuple(s / 1000 for s in STEPS))
# A chunk's own steps, then the clean pass that makes the keys and values which later chunks read.
ROWS = (*((ChunkTime(0, "active", k),) for k in range(len(STEPS))), (ChunkTime(0, "finished", 0, clean=True),))
CHUNKS = 4  # the window of keys and values is full after two, and rolls
CONTEXT = torch.randn(1, TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(1))
STEPWISE = """policy steps {
  phase rest { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""
TOKENS = """policy tokens {
  param part = 100% in 0%..100%
  signal motion = frame_diff(embedded)
  phase warmup for 1 step { compute }
  phase rest { compute top part of tokens by motion }
  layers blocks[*] { keep residual }
}
"""


def call(size: tuple[int, int], past: int, start: int) -> dict[str, object]:
    """past: latent frames whose keys and values are given. start: the chunk's first frame."""
    tokens = past * (size[0] // 2) * (size[1] // 2)
    kept: KeyValues = [tuple(torch.randn(2, 1, tokens, HEADS, DIM // HEADS)) for _ in range(2)]  # type: ignore[misc]
    x, at = torch.randn(1, CHANNELS, FRAMES, *size), torch.full((1, FRAMES), 500.0)
    return {"x": x, "timestep": at, "context": CONTEXT, "kv_cache": kept, "start_frame": start}


@cache
def prepared() -> tuple[CausalWan, api.Prepared, torch.Tensor]:
    """The model, its capture, and what the model itself generates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CausalWan().eval().requires_grad_(False)
        made = api.prepare(model, probe=call((8, 12), 3, 3), second=call((12, 20), 6, 9))
    return model, made, Rollout(model, CONTEXT).run(CHUNKS)


def rolled(policy: str, **parameters: float) -> tuple[torch.Tensor, CompiledModel]:
    """A video under a policy: each chunk is a request of its own, for it takes all its steps in turn."""
    model, captured, _ = prepared()
    clock = Timeline("", GRID, ROWS)
    text = Source("test.policy", policy) if "{" in policy else policy
    compiled = api.compile(model, text, captured=captured, clock=clock, backend="eager", **parameters)  # type: ignore[arg-type]

    def told(chunk: int, step: int) -> None:
        clock.request, clock.row = f"chunk {chunk}", step

    return Rollout(compiled, CONTEXT, told=told).run(CHUNKS), compiled


def test_the_chunk_is_found_behind_what_is_kept() -> None:
    _, captured, _ = prepared()
    assert captured.model.refusals == ()
    assert captured.model.grid == TokenGrid("x", (2, 3, 4), (1, 2, 2))
    assert {buffer.rows for buffer in captured.model.kinds[0].buffers} == {"72|360+video"}


def test_computing_everything_is_the_models_own_video() -> None:
    found, _ = rolled("compute")
    assert torch.equal(found, prepared()[2])


def test_steps_are_reused_and_the_clean_pass_is_not() -> None:
    """What later chunks read is made of the chunk as it was generated."""
    found, compiled = rolled(STEPWISE)
    one = ["full", "reuse", "full", "reuse", "full"]
    assert [event.action for event in compiled.events] == one * CHUNKS
    assert not torch.equal(found, prepared()[2])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("part", [1.0, 0.4])
def test_selected_tokens_of_a_chunk_run_alone(part: float) -> None:
    found, compiled = rolled(TOKENS, part=part)
    wanted = prepared()[2]
    assert compiled.runner.engine.uses_rows
    assert torch.isfinite(found).all()
    assert bool(((found - wanted).norm() < 1e-4 * wanted.norm()) == (part == 1.0))
    shares = [event.computed / event.tokens for event in compiled.events[: len(ROWS)]]
    assert shares == pytest.approx([1, part, part, part, 1], abs=0.02)
