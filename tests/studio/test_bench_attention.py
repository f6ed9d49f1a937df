"""`bench attention` shows the choice that compiled code makes, with the times of both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mccompile.backend.native.choice import KEYS, QUERIES, TimingTable
from mccompile.generate.errors import OptionRefused
from mccompile.studio.bench import attention, commands
from mccompile.studio.bench.attention import Sweep

SWEEP = Sweep((64,), (1, 12), (64, 4096), rounds=1, largest=12 * 64)
SLOW, FAST = 2.0, 1.0


def table(width: int, threads: int) -> TimingTable:
    """The kernel is faster from 8 queries on."""
    own = tuple((FAST if q >= 8 else SLOW,) * len(KEYS) for q in QUERIES)
    return TimingTable(width, threads, ((1.5,) * len(KEYS),) * len(QUERIES), own)


def test_a_row_for_each_shape_with_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "table_for", table)
    monkeypatch.setattr(attention, "seconds", lambda *shape: (1.5, FAST))
    with attention._threads(2):
        made = attention.report(SWEEP)
        assert torch.get_num_threads() == 2
    found = [(r["dtype"], r["threads"], r["queries"], r["keys"], r["chosen"], r["speed_up"]) for r in made.rows]
    assert found == [  # larger points are left out
        row
        for threads in (1, 2)
        for row in (
            ("float32", threads, 1, 64, "torch", 1.0), ("float32", threads, 12, 64, "own", 1.5),
            ("bfloat16", threads, 1, 64, "torch", 1.0), ("bfloat16", threads, 12, 64, "torch", 1.0),
        )
    ]  # fmt: skip
    assert all(float(r["torch_ms"]) > 0 for r in made.rows)
    short = attention.short(made)
    keys = ("dtype", "threads", "shapes", "own", "least", "median", "most")
    assert [tuple(r[key] for key in keys) for r in short.rows] == [
        row for threads in (1, 2)
        for row in (("float32", threads, 2, 1, 1.0, 1.25, 1.5), ("bfloat16", threads, 2, 0, 1.0, 1.0, 1.0))
    ]  # fmt: skip
    assert commands.summary((made, short)) == {"benchmark": "attention", "chosen_over_torch_min": 1.0}


def test_without_a_kernel_all_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "table_for", lambda width, threads: None)
    assert {(r["chosen"], r["speed_up"]) for r in attention.report(SWEEP).rows} == {("torch", 1.0)}


@pytest.mark.parametrize(("model", "device"), [("embedded", "cuda"), (str(Path("a", "folder")), "cpu")])
def test_it_is_about_this_cpu_alone(model: str, device: str) -> None:
    with pytest.raises(OptionRefused, match="bench attention"):
        commands.Options.of("attention", model, device, "inductor", None, True, False, "wall")
