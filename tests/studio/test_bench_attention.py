"""`bench attention` shows the choice that compiled code makes, with the times of both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    made = attention.report(SWEEP)
    found = [(r["queries"], r["keys"], r["chosen"], r["speed_up"]) for r in made.rows]
    assert found == [(1, 64, "torch", 1.0), (12, 64, "own", 1.5)]  # larger points are left out
    assert commands.summary((made,)) == {"benchmark": "attention", "chosen_over_torch_min": 1.0}


def test_without_a_kernel_all_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "table_for", lambda width, threads: None)
    assert {(r["chosen"], r["speed_up"]) for r in attention.report(SWEEP).rows} == {("torch", 1.0)}


@pytest.mark.parametrize(("model", "device"), [("embedded", "cuda"), (str(Path("a", "folder")), "cpu")])
def test_it_is_about_this_cpu_alone(model: str, device: str) -> None:
    with pytest.raises(OptionRefused, match="bench attention"):
        commands.Options.of("attention", model, device, "inductor", None, True, False, "wall")
