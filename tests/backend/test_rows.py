"""Attention over prefixes for all rows at once: the kernel's numbers, and which attention is chosen on a GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor import config

from mccompile.backend.rows import choice
from mccompile.backend.rows.choice import (
    HOPPER,
    OTHERS,
    POINTS,
    RowsChoice,
    Tile,
    candidates,
    choice_for,
    choose,
    for_windows,
    needs_triton,
)
from mccompile.lowering.attention import bounds_of, seen_of
from tests.backend.interpreted import CASES

CUDA = torch.device("cuda", 0)
NEAR = {"torch.float32": 1e-6, "torch.float16": 1e-3}  # relative: of sums in float32, of products in float16


@pytest.mark.skipif(needs_triton(), reason="Triton is not installed; on Linux the extra `test` brings it")
def test_the_kernel_is_right_in_the_interpreter() -> None:
    """In float32 and float16: groups, samples, shared keys, heads of odd widths, rows apart in memory."""
    command = [sys.executable, "-m", "tests.backend.interpreted"]
    told = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    cases = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(cases) == len(NEAR) * len(CASES)
    assert [c for c in cases if not c["error"] < NEAR[c["dtype"]]] == []


def test_rows_and_bounds_tell_the_same() -> None:
    lengths = np.repeat([4, 8, 12], 4)
    positions = np.array([0, 3, 5, 9, 11])
    seen = seen_of(positions, lengths)
    assert seen.tolist() == [4, 4, 8, 12, 12]
    assert seen.dtype == torch.int32
    for first, end, keys in bounds_of(positions, lengths).tolist():
        assert set(seen[first:end].tolist()) == {keys}


# ---- the choice
@pytest.mark.parametrize(
    ("capability", "wanted"), [((9, 0), HOPPER), ((8, 9), OTHERS), ((12, 0), OTHERS)]
)
def test_tiles_are_of_the_architecture(capability: tuple[int, int], wanted: tuple[Tile, ...]) -> None:
    assert candidates(capability) == wanted


def test_the_fastest_over_all_points_is_chosen() -> None:
    small, large = HOPPER[2], HOPPER[0]
    times = {None: (1.0, 1.0, 8.0), small: (0.5, 1.5, 8.0), large: (1.0, 1.0, 4.0)}
    assert choose(times).tile == large
    assert choose(times | {large: (1.0, math.inf, 4.0)}).tile == small
    assert choose({None: (1.0, 1.0), large: (math.inf, math.inf)}).tile is None
    assert "torch, by groups 1e+03 / 1e+03 / 8e+03 ms" in choose(times).why


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """A GPU that is not there; the list grows with each measurement."""
    measured: list[int] = []

    def measure(*_: object) -> dict[Tile | None, tuple[float, ...]]:
        measured.append(1)
        return {None: (2.0,) * len(POINTS), HOPPER[0]: (1.0,) * len(POINTS)}

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setattr("mccompile.backend.measured.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "needs_triton", lambda: False)
    choice_for.cache_clear()
    yield measured
    choice_for.cache_clear()


def test_it_is_measured_once_and_remembered(machine: list[int]) -> None:
    first = choice_for(64, 64, torch.bfloat16, CUDA)
    assert first.tile == HOPPER[0]
    choice_for.cache_clear()  # another process
    assert choice_for(64, 64, torch.bfloat16, CUDA) == first
    assert machine == [1]
    choice_for(128, 128, torch.bfloat16, CUDA)
    assert machine == [1, 1]


def test_a_damaged_table_is_measured_again(machine: list[int], tmp_path: Path) -> None:
    choice_for(64, 64, torch.bfloat16, CUDA)
    (kept,) = tmp_path.iterdir()
    kept.write_text("{}")
    choice_for.cache_clear()
    assert choice_for(64, 64, torch.bfloat16, CUDA).tile == HOPPER[0]
    assert machine == [1, 1]


def test_torchs_switch_keeps_nothing(machine: list[int], tmp_path: Path) -> None:
    with config.patch({"force_disable_caches": True}):
        choice_for(64, 64, torch.bfloat16, CUDA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "why"),
    [
        (64, torch.float32, (9, 0), "the kernel has no float32"),
        (512, torch.float16, (9, 0), "heads of 512 are wider"),
        (64, torch.float16, (7, 5), "compute capability 7.5 is older than 8.0"),
    ],
)  # fmt: skip
def test_what_the_kernel_does_not_cover_is_torchs_and_told(
    machine: list[int], monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype, capability: tuple[int, int],
    why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    found = choice_for(width, width, dtype, CUDA)
    assert found.tile is None
    assert why in choice.told(found)
    assert machine == []


def test_without_triton_it_is_torchs_and_told(
    machine: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "needs_triton", lambda: True)
    assert choice_for(64, 64, torch.bfloat16, CUDA) == RowsChoice(None, choice.TRITON_MISSING)
    assert "attention over prefixes on a GPU: torch's, one call for each group of rows (Triton is not" in caplog.text


@pytest.mark.parametrize(("capability", "most"), [((9, 0), 64), ((8, 9), 32)])
def test_windows_take_fewer_keys_at_once_and_the_same_rows(capability: tuple[int, int], most: int) -> None:
    """`make gpu-check` compiles these tiles, and fails where one spills."""
    for tile in candidates(capability):
        found = for_windows(tile, capability)
        assert found.keys == min(tile.keys, most)
        assert (found.rows, found.warps, found.stages) == (tile.rows, tile.warps, tile.stages)
