"""Few-step autoregressive models whose forward writes keys and values into the caches that it is given."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import mccompile.api as api
from mccompile.capture.errors import ExportError
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel
from tests.cached_wan import Cache, CachedBlock, CachedRollout, CachedWan, empty_caches
from tests.causal_wan import CHANNELS, FRAMES, STEPS, TEXT, TEXT_DIM

GRID = Grid(len(STEPS), STEPS, tuple(s / 1000 for s in STEPS))
# A chunk's own steps, then the clean pass that makes the keys and values which later chunks read.
ROWS = (*((ChunkTime(0, "active", k),) for k in range(len(STEPS))), (ChunkTime(0, "finished", 0, clean=True),))
CHUNKS = 4  # the caches are full after two, and roll
CONTEXT = torch.randn(1, TEXT, TEXT_DIM, generator=torch.Generator().manual_seed(1))
STEPWISE = """policy steps {
  phase rest { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""


def call(size: tuple[int, int], start: int) -> dict[str, object]:
    """A first call of the chunk that begins at the frame `start`, where the frames before fill the caches."""
    caches = empty_caches(size, 6)
    place = (size[0] // 2) * (size[1] // 2)
    for one in caches:
        one["k"].normal_()
        one["v"].normal_()
        one["global_end_index"].fill_(start * place)
        one["local_end_index"].fill_(min(start, 6) * place)
    x, at = torch.randn(1, CHANNELS, FRAMES, *size), torch.full((1, FRAMES), 500.0)
    return {"x": x, "timestep": at, "context": CONTEXT, "kv_cache": caches, "start_frame": start}


def made(kind: type[CachedWan]) -> CachedWan:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval().requires_grad_(False)


@cache
def prepared() -> tuple[CachedWan, api.Prepared, CachedRollout, torch.Tensor]:
    """The model, its capture, and what the model itself generates."""
    model = made(CachedWan)
    with torch.random.fork_rng():
        captured = api.prepare(model, probe=call((8, 12), 3), second=call((12, 20), 9))
    alone = CachedRollout(model, CONTEXT)
    return model, captured, alone, alone.run(CHUNKS)


def rolled(policy: str) -> tuple[torch.Tensor, CachedRollout, CompiledModel]:
    """A video under a policy: each chunk is a request of its own, for it takes all its steps in turn."""
    model, captured, _, _ = prepared()
    clock = Timeline("", GRID, ROWS)
    text = Source("test.policy", policy) if "{" in policy else policy
    compiled = api.compile(model, text, captured=captured, clock=clock, backend="eager")

    def told(chunk: int, step: int) -> None:
        clock.request, clock.row = f"chunk {chunk}", step

    rollout = CachedRollout(compiled, CONTEXT, told=told)
    return rollout.run(CHUNKS), rollout, compiled


def same(one: list[Cache], two: list[Cache]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in a)


def test_computing_everything_is_the_models_own_video_and_leaves_its_caches() -> None:
    found, rollout, _ = rolled("compute")
    _, _, alone, wanted = prepared()
    assert torch.equal(found, wanted)
    assert same(rollout.kept, alone.kept)


def test_capture_leaves_the_callers_example_as_it_was() -> None:
    """Its caches are written into by no run of the model."""
    given = call((8, 12), 3)
    before = [{name: value.clone() for name, value in one.items()} for one in given["kv_cache"]]  # type: ignore[attr-defined]
    api.prepare(made(CachedWan), probe=given, second=call((12, 20), 9))
    assert same(given["kv_cache"], before)  # type: ignore[arg-type]


def test_steps_are_reused_and_the_caches_hold_what_the_computed_steps_wrote() -> None:
    """The clean pass is computed, so that later chunks read the chunk as it was generated."""
    found, rollout, compiled = rolled(STEPWISE)
    one = ["full", "reuse", "full", "reuse", "full"]
    assert [event.action for event in compiled.events] == one * CHUNKS
    model, _, _, wanted = prepared()
    assert torch.isfinite(found).all()
    assert not torch.equal(found, wanted)
    last = {"x": found[:, :, -FRAMES:], "timestep": torch.zeros(1, FRAMES), "context": CONTEXT}
    again = [{name: value.clone() for name, value in cache.items()} for cache in rollout.kept]
    model(**last, kv_cache=again, start_frame=(CHUNKS - 1) * FRAMES)
    assert same(again, rollout.kept)


class Adding(CachedBlock):
    """Adds to what stood in its cache."""

    def written(self, cache: Cache, k: torch.Tensor, v: torch.Tensor, start: int, sink: int) -> int:
        stop = super().written(cache, k, v, start, sink)
        cache["v"][:, :stop] += 1
        return stop


class Remembering(CachedBlock):
    """Keeps a part of what the step before wrote."""

    def written(self, cache: Cache, k: torch.Tensor, v: torch.Tensor, start: int, sink: int) -> int:
        new, before = k.size(1), int(cache["global_end_index"].item())
        stop = int(cache["local_end_index"].item())
        kept = cache["k"][:, stop - new : stop].clone()
        stop = super().written(cache, k, v, start, sink)
        if before == start + new:
            cache["k"][:, stop - new : stop] = torch.maximum(kept, k)
        return stop


@pytest.mark.parametrize(
    ("kind", "why"), [(Adding, "writes something else if called again"), (Remembering, "reads what the step before")]
)
def test_a_forward_that_a_left_out_step_would_change_is_refused(kind: type[CachedBlock], why: str) -> None:
    class Other(CachedWan):
        def __init__(self) -> None:
            super().__init__(0)
            self.blocks = torch.nn.ModuleList(kind() for _ in range(2))

    with pytest.raises(ExportError, match=why):
        api.prepare(made(Other), probe=call((8, 12), 3), second=call((12, 20), 9))


class Shared(CachedWan):
    """All blocks write into one cache, each at a place of its own."""

    def forward(self, x: torch.Tensor, kv_cache: list[Cache], **given: object) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, kv_cache=[kv_cache[0]] * len(self.blocks), **given)  # type: ignore[arg-type]


def test_blocks_that_share_a_cache_are_refused() -> None:
    with pytest.raises(ExportError, match=r"`blocks\.0` writes in place into what `blocks\.1` is given too"):
        api.prepare(made(Shared), probe=call((8, 12), 3), second=call((12, 20), 9))
