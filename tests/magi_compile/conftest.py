"""Tiny random MAGI-1 pipelines, compiled in the eager backend; each kind is captured once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.models.magi import MagiPipeline, MagiSettings
from mccompile.pipelines.kinds.windows import record_window_calls
from mccompile.runtime.compiled import CompiledModel
from tests.magi.tiny import PROMPT, SETTINGS, TINY, tiny_pipeline

torch.set_num_threads(1)
POLICY = Path(__file__).parents[2] / "policies" / "motioncache_magi1.policy"
FLOW = POLICY.with_name("flowcache_magi1.policy")
CHUNKS = 4
REFRESHED = ("finished: keep", "finished: refresh")


@dataclass(frozen=True)
class Tiny:
    """A pipeline of 4 chunks of 2 latent frames of 2x4 tokens; probes: its two recorded calls."""

    pipe: MagiPipeline
    probes: tuple[dict[str, object], dict[str, object]]
    captured: api.Prepared

    def run(self, seed: int = 0, steps: int = 16, **more: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.pipe(
            PROMPT, height=32, width=64, num_frames=8 * CHUNKS, num_inference_steps=steps, output_type="latent",
            generator=generator, **more,
        ).frames  # fmt: skip

    def compile(self, policy: str, **more: object) -> CompiledModel:
        text = Source("test.policy", policy) if policy.startswith("policy") else policy
        return api.compile(self.pipe, text, backend="eager", captured=self.captured, **more)  # type: ignore[arg-type]


def prepared(settings: MagiSettings, layers: int) -> Callable[[], Tiny]:
    """Makes the pipeline anew around one capture: its weights are the same each time."""

    def pipeline() -> MagiPipeline:
        return tiny_pipeline(settings, replace(TINY, num_layers=layers))

    first = pipeline()
    probes = record_window_calls(first, {})
    captured = api.prepare(first, probe=probes[0], second=probes[1])

    def make() -> Tiny:
        first.transformer = transformer
        return Tiny(first, probes, captured)

    transformer = first.transformer
    return make


@pytest.fixture(scope="session")
def _distilled() -> Callable[[], Tiny]:
    return prepared(replace(SETTINGS, distilled=True), layers=2)


@pytest.fixture(scope="session")
def _guided() -> Callable[[], Tiny]:
    return prepared(SETTINGS, layers=1)


@pytest.fixture
def distilled(_distilled: Callable[[], Tiny]) -> Iterator[Tiny]:
    """One pass per call; past the threshold the first chunk runs a second time, alone."""
    yield from _undone(_distilled())


@pytest.fixture
def guided(_guided: Callable[[], Tiny]) -> Iterator[Tiny]:
    """Three passes per call."""
    yield from _undone(_guided())


def _undone(tiny: Tiny) -> Iterator[Tiny]:
    yield tiny
    if isinstance(tiny.pipe.transformer, CompiledModel):
        tiny.pipe.transformer.undo()
