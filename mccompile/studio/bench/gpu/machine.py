"""Where the stages of `bench gpu` run, and at which sizes: a GPU at real ones, or a CPU that rehearses at tiny ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mccompile import api
from mccompile.generate.run import Settings
from mccompile.pipelines.probe import ExampleCall
from mccompile.studio.bench.gpu.magi import MAGI_REAL, MAGI_TINY, MagiSubject
from mccompile.studio.bench.subjects import REAL, TINY, Subject

TESTS = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/device")


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A transformer with random weights and one call of it. prepared: what was captured of it, where that is wanted."""

    model: nn.Module
    call: ExampleCall
    prepared: api.Prepared | None


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of a run.

    rows, keys: of attention. matrix: sides of the product that shows the ceiling. bytes: of the copies. rounds: timed
    calls, of which the median counts. tests: what pytest is told. generation: what differs from the embedded model's
    settings. peer_steps: of each peer.
    """

    subject: Subject
    magi: MagiSubject
    shares: tuple[float, ...]
    rows: tuple[int, ...]
    keys: int
    heads: int
    width: int
    matrix: int
    bytes: int
    rounds: int
    tests: tuple[str, ...]
    generation: Settings
    peer_steps: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and how models get there. make: a subject as a model on the device, captured or not."""

    device: torch.device
    dtype: torch.dtype
    backend: str
    scale: Scale
    make: Callable[[Subject | MagiSubject, bool], MadeModel]


FULL = Scale(
    REAL, MAGI_REAL, (0.05, 0.14, 0.25, 0.5, 1.0), rows=(510, 2550, 10200), keys=51000, heads=12, width=128,
    matrix=8192, bytes=2**30, rounds=5, tests=TESTS, generation=Settings(), peer_steps=4,
)  # fmt: skip
SMALL = Scale(
    TINY, MAGI_TINY, (0.05, 0.5, 1.0), rows=(3, 7), keys=24, heads=2, width=16, matrix=32, bytes=2**12, rounds=1,
    tests=("--collect-only", *TESTS), generation=Settings(num_inference_steps=4, num_frames=7, height=32, width=32),
    peer_steps=2,
)  # fmt: skip


def gpu() -> Machine:
    """The GPU in bfloat16, everything compiled."""
    device, dtype = torch.device("cuda", 0), torch.bfloat16
    return Machine(device, dtype, "inductor", FULL, _maker(device, dtype))


def rehearsal() -> Machine:
    """The CPU in float32, nothing compiled."""
    device, dtype = torch.device("cpu"), torch.float32
    return Machine(device, dtype, "eager", SMALL, _maker(device, dtype))


def _maker(device: torch.device, dtype: torch.dtype) -> Callable[[Subject | MagiSubject, bool], MadeModel]:
    def make(subject: Subject | MagiSubject, captured: bool) -> MadeModel:
        model = subject.model(device, dtype)
        prepared = subject.prepared(model) if captured else None
        return MadeModel(model, subject.call(device, dtype), prepared)

    return make
