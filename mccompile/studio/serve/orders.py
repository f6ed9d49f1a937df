"""What the server and the process that runs the model say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid

REPORT, SIDE_BY_SIDE, ALONE = "report.html", "side_by_side.mp4", "policy.mp4"
RESULTS = (REPORT, SIDE_BY_SIDE, ALONE)  # the files of a finished run


@dataclass(frozen=True, slots=True)
class Given:
    """What `mccompile serve` was told of the model. settings: of the video, by diffusers' names."""

    model: str
    device: str | None
    dtype: Literal["float32", "bfloat16", "float16"] | None
    backend: str
    deny_refusals: bool
    settings: Mapping[str, object]
    seed: int


@dataclass(frozen=True, slots=True)
class Preset:
    """A size of video that the page offers. settings: by diffusers' names. grid: its steps."""

    name: str
    settings: Mapping[str, object]
    grid: Grid


@dataclass(frozen=True, slots=True)
class Order:
    """One run. values: of the policy's parameters in their own units, and of its choices. folder: for its results."""

    source: Source
    values: Mapping[str, float | str]
    preset: Preset
    prompt: str
    seed: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is there. kind: of its pipeline. prompt, seed: what the page begins with."""

    kind: str
    prompt: str
    seed: int
    presets: tuple[Preset, ...]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What is being done, and how far. total: 0 where nobody knows."""

    doing: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """A finished run. said: whether the output is the model's. seconds: of the policy and of vanilla.

    tokens, flops: shares of vanilla's, 0..1. psnr, worst: in dB of all frames and of the worst one, 0 first; None where
    equal. warnings: what a user must know of the run.
    """

    said: str
    seconds: float
    vanilla_seconds: float
    tokens: float
    flops: float
    psnr: float | None
    worst: float | None
    worst_frame: int
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunRefused:
    """A run, or the model itself, was refused."""

    diagnostics: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class RunStopped:
    """A run was cancelled."""


Answer = Loaded | RunProgress | RunOutcome | RunRefused | RunStopped
