"""Which attention over prefixes runs on a GPU, by measurement: the Triton kernel and its tiles, or torch's by groups.

All candidates are timed once per GPU, width of heads and dtype. One choice stands for all numbers of rows: the one
whose times, each in units of the best one at its point, have the least sum. It is kept beside the packages, so that
every process decides alike. `told` says what was chosen.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mccompile.backend.measured import measured_once
from mccompile.backend.rows.operator import rows_operator
from mccompile.lowering.attention import attend, bounds_of, seen_of

SOURCE, WINDOW_SOURCE = (Path(__file__).with_name(name) for name in ("kernel.py", "window_kernel.py"))
POINTS = ((512, 12_800), (2_560, 51_200), (10_240, 51_200))  # rows, keys
HEADS, GROUPS, ROUNDS = 12, 5, 5
OLDEST = (8, 0)  # compute capability: older GPUs have no bfloat16
DTYPES = (torch.bfloat16, torch.float16)  # tiles of float32 do not stay in registers
LOG = logging.getLogger("mccompile")
WIDEST = 128  # tiles of wider heads do not stay in registers
TRITON_MISSING = "Triton is not installed"


@dataclass(frozen=True, slots=True)
class Tile:
    """rows, keys: of one tile. warps: that share it. stages: of the pipeline of loads."""

    rows: int
    keys: int
    warps: int
    stages: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.rows, self.keys, self.warps, self.stages


@dataclass(frozen=True, slots=True)
class RowsChoice:
    """tile: of the Triton kernel; None for torch's attention, one call for each group. why: in words."""

    tile: Tile | None
    why: str


HOPPER = (Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3), Tile(32, 32, 4, 2))
OTHERS = (Tile(64, 64, 4, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 3), Tile(32, 32, 4, 2))


def candidates(capability: tuple[int, int]) -> tuple[Tile, ...]:
    """The tiles that are tried on GPUs of a compute capability; `make gpu-check` compiles each of them."""
    return HOPPER if capability[0] == 9 else OTHERS


def for_windows(tile: Tile, capability: tuple[int, int]) -> Tile:
    """The tile of the kernel of windows where this one was chosen for prefixes.

    That kernel holds more per row. With more keys in a tile its registers spill; `make gpu-check` compiles it.
    """
    return replace(tile, keys=min(tile.keys, 64 if capability[0] == 9 else 32))


@functools.cache
def choice_for(width: int, out_width: int, dtype: torch.dtype, device: torch.device) -> RowsChoice:
    """For heads of these widths; measured now where it is not yet known on this machine."""
    refused = _refused(max(width, out_width), dtype, torch.cuda.get_device_capability(device))
    if refused:
        return _said(RowsChoice(None, refused), device)
    machine = torch.cuda.get_device_name(device), torch.__version__, torch.version.cuda
    facts = (width, out_width, str(dtype), source_hash(), *machine, POINTS, HEADS, GROUPS, HOPPER, OTHERS)
    found = measured_once(RowsChoice, "rows", facts, lambda: choose(measure(width, out_width, dtype, device)))
    return _said(found, device)


def _said(choice: RowsChoice, device: torch.device) -> RowsChoice:
    """Tells in the log what attends from selected rows; without Triton on a GPU that could use it, as a warning."""
    level = logging.WARNING if choice.why == TRITON_MISSING else logging.INFO
    LOG.log(level, "attention over prefixes on %s: %s", torch.cuda.get_device_name(device), told(choice))
    return choice


def needs_triton() -> bool:
    """Whether Triton is missing here."""
    return importlib.util.find_spec("triton") is None


def _refused(widest: int, dtype: torch.dtype, capability: tuple[int, int]) -> str:
    """Why the Triton kernel is no candidate; "" where it is."""
    if needs_triton():
        return TRITON_MISSING
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than 8.0"
    if dtype not in DTYPES:
        return f"the kernel has no {str(dtype).removeprefix('torch.')}"
    return f"heads of {widest} are wider than {WIDEST}" if widest > WIDEST else ""


def choose(times: Mapping[Tile | None, Sequence[float]]) -> RowsChoice:
    """The choice by seconds at each point; None: torch's attention. Infinite: it did not run there."""
    best = [min(column) for column in zip(*times.values(), strict=True)]
    sums = {tile: sum(s / b for s, b in zip(seconds, best, strict=True)) for tile, seconds in times.items()}
    tile = min(sums, key=lambda t: sums[t])
    shown = "; ".join(f"{_name(t)} {' / '.join(f'{s * 1e3:.3g}' for s in times[t])} ms" for t in times)
    return RowsChoice(tile, f"the fastest by measurement: {shown}")


def _name(tile: Tile | None) -> str:
    if tile is None:
        return "torch, by groups"
    return f"{tile.rows} x {tile.keys}, {tile.warps} warps, {tile.stages} stages"


def told(choice: RowsChoice) -> str:
    """What runs, in words."""
    if choice.tile is None:
        return f"torch's, one call for each group of rows ({choice.why})"
    return f"one Triton kernel, {_name(choice.tile)} ({choice.why})"


def measure(
    width: int, out_width: int, dtype: torch.dtype, device: torch.device
) -> dict[Tile | None, tuple[float, ...]]:
    """Seconds of every candidate at each of POINTS."""
    found: dict[Tile | None, tuple[float, ...]] = {}
    for tile in (None, *candidates(torch.cuda.get_device_capability(device))):
        found[tile] = tuple(_seconds(_way(tile, *point, width, out_width, dtype, device), device) for point in POINTS)
    return found


def _way(
    tile: Tile | None, rows: int, keys: int, width: int, out_width: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """One call of a candidate on evenly spread rows of GROUPS chunks."""
    positions = np.linspace(0, keys - 1, rows).astype(np.int64)
    lengths = (np.arange(keys) * GROUPS // keys + 1) * (keys // GROUPS)
    q, k, v = (
        torch.zeros(1, n, HEADS, w, dtype=dtype, device=device).transpose(1, 2)
        for n, w in ((rows, width), (keys, width), (keys, out_width))
    )
    bounds, seen = bounds_of(positions, lengths), seen_of(positions, lengths).to(device)
    if tile is None:
        return lambda: attend(q, k, v, bounds)
    operator, sizes = rows_operator(), tile.sizes
    return lambda: operator(q, k, v, seen, None, *sizes)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The least of ROUNDS, after one that is not timed; infinite where the device has too little for the tile."""
    from triton.runtime.errors import OutOfResources

    with torch.cuda.device(device):
        try:
            call()
        except (OutOfResources, torch.OutOfMemoryError):
            return math.inf
        runs = []
        for _ in range(ROUNDS):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            call()
            ended.record()
            ended.synchronize()
            runs.append(begun.elapsed_time(ended) / 1e3)
    return min(runs)


@functools.cache
def source_hash(source: Path = SOURCE) -> str:
    """Of a kernel: packages and choices that were made with another one are not used."""
    return hashlib.sha256(source.read_bytes()).hexdigest()
