"""The stages of `bench gpu` in their order, and how long each may take. This file does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class GpuStage:
    """One part of the run. seconds: after which it is ended; what it has told by then is kept."""

    name: str
    seconds: float
    what: str


STAGES = (
    GpuStage("facts", 45, "the machine, and what it can do at most"),
    GpuStage("attention", 40, "attention of selected rows: first call and steady state of every alternative"),
    GpuStage("tests", 80, "pytest -m gpu"),
    GpuStage("ladder", 120, "single steps of the 1.3B transformer at shares of its tokens"),
    GpuStage("profile", 15, "the kernels of one step at the smallest share"),
    GpuStage("motioncache", 5, "those times over the schedule of 177 frames, beside the published speed-ups"),
    GpuStage("magi", 85, "single steps of MAGI-1 4.5B, and its schedule"),
    GpuStage("embedded", 45, "whole generations of the embedded pipeline"),
    GpuStage("peers", 45, "diffusers' caches and cache-dit on the 1.3B transformer"),
)
TOTAL = 480.0  # seconds of all stages together
REHEARSED = tuple(replace(s, seconds=600.0) for s in STAGES)  # a CPU that rehearses may be slow, and has other work
LEAST = 2.0  # a stage for which less is left does not begin
