"""How a run went, call by call, as data of its record: what the plan had said, what decided, what was kept."""

from __future__ import annotations

from dataclasses import dataclass

from mccompile.policy.cells import PlannedAction


@dataclass(frozen=True, slots=True)
class SeenChunk:
    """One chunk of one call. accounts, signals: the highest account and each signal's mean, by name, where known.

    predicted: what the plan had said of its step; None outside of its own steps.
    """

    chunk: int
    accounts: tuple[tuple[str, float], ...]
    signals: tuple[tuple[str, float], ...]
    predicted: PlannedAction | None


@dataclass(frozen=True, slots=True)
class SeenCall:
    """One call of one guidance branch. kept: bytes of the branch's store after it."""

    row: int
    branch: str
    kept: int
    chunks: tuple[SeenChunk, ...]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What the plan says of a chunk's own step. phase: "" where the run will tell."""

    phase: str
    action: PlannedAction


@dataclass(frozen=True, slots=True)
class Threshold:
    """What an account is compared with in a phase, at each own step of a chunk; None where data decides it."""

    account: str
    phase: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LayerRegion:
    """Blocks first..last, both included. keep: what is kept of them, "" where they are always computed."""

    first: int
    last: int
    keep: str


@dataclass(frozen=True, slots=True)
class Story:
    """What a report tells beside the events.

    warnings: what a user must know of the run. fallbacks: what ran another way than it could have. weighed: the signal
    of the record's weights, "" where there is none. undrawn: why there are no thumbnails, "" where there are.
    watching: seconds that recording took while the run was made.
    """

    plan: tuple[PlannedStep, ...]
    thresholds: tuple[Threshold, ...]
    regions: tuple[LayerRegion, ...]
    calls: tuple[SeenCall, ...]
    warnings: tuple[str, ...]
    fallbacks: tuple[str, ...]
    weighed: str
    undrawn: str
    watching: float
