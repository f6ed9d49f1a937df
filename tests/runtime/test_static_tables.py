"""The table of a static signal has, for every step, how far the model's time embedding moved since the step before."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.planning import static_tables

GRID = Grid(4, (960.0, 700.0, 410.0, 90.0), (0.96, 0.7, 0.41, 0.09))
POLICY = Source("p.policy", """policy p {
  signal drift = rel_l1(time_embedding)
  phase all { reuse chunk while accumulate(drift) < 0.1 }
  layers blocks[*] { keep residual }
}
""")


def _embedded(model: WanTransformer3DModel, timestep: float) -> torch.Tensor:
    """The model's own code: sinusoids through its two layers."""
    embedder = model.condition_embedder
    return embedder.time_embedder(embedder.timesteps_proj(torch.tensor([timestep])))


def test_every_entry_is_the_distance_of_two_neighbouring_steps(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    compiled = api.compile(small_wan, POLICY, backend="eager", captured=captured_wan)
    with torch.no_grad():
        (table,) = static_tables(compiled.runner.lowered, GRID, captured_wan.calls[0]).values()
        made = [_embedded(small_wan, t) for t in GRID.timesteps]
    compiled.undo()
    moved = [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(made)]
    assert table[0] == 0.0
    assert table[1:] == pytest.approx(moved, rel=1e-5)
    assert len(set(table)) == GRID.steps
