"""Attention on this CPU: torch's and the project's kernel over a sweep of shapes, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mccompile.backend.native.choice import TimingTable, seconds, table_for
from mccompile.studio.bench.report import Column, Json, Plot, Report, Row

COLUMNS = (
    Column("width", "head width"), Column("queries", "queries"), Column("keys", "keys"),
    Column("torch_ms", "torch, ms", ".3f"), Column("own_ms", "own kernel, ms", ".3f"), Column("chosen", "chosen"),
    Column("speed_up", "chosen by torch", ".2f"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sweep:
    """Shapes of one head. largest: queries times keys of the largest point that is timed."""

    widths: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    rounds: int
    largest: int = 2**25


FULL = Sweep((32, 64, 128, 256), (1, 2, 5, 12, 33, 102, 256, 410, 1024, 8192), (64, 512, 2048, 8192, 32768), 5)
QUICK = Sweep((64,), (1, 12, 102, 410), (512, 2048), 3)


def report(sweep: Sweep) -> Report:
    """One row per shape, float32; of other dtypes all attention is torch's. One head per thread."""
    threads = torch.get_num_threads()
    rows = [row for width in sweep.widths for row in _rows(sweep, width, threads)]
    return Report(
        name="attention",
        title=f"Attention over prefixes, float32, {threads} thread(s), one head for each",
        columns=COLUMNS,
        rows=tuple(rows),
        plot=Plot("queries", "speed_up", "queries", "torch's time by that of the choice", "series", log_x=True),
        settings={"threads": threads, "rounds": sweep.rounds, "dtype": "float32"},
    )


def _rows(sweep: Sweep, width: int, threads: int) -> Sequence[Row]:
    table = table_for(width, threads)
    shapes = [(q, k) for q in sweep.queries for k in sweep.keys if q * k <= sweep.largest]
    return [_row(table, q, k, width, threads, sweep.rounds) for q, k in shapes]


def _row(table: TimingTable | None, queries: int, keys: int, width: int, threads: int, rounds: int) -> Row:
    about: dict[str, Json] = {"width": width, "queries": queries, "keys": keys, "series": f"width {width}, {keys} keys"}
    if table is None:
        return {**about, "chosen": "torch", "speed_up": 1.0}
    torch_s, own_s = seconds(queries, keys, width, threads, rounds)
    own = table.own_is_faster(queries, keys)
    return {
        **about, "torch_ms": torch_s * 1e3, "own_ms": own_s * 1e3, "chosen": "own" if own else "torch",
        "speed_up": torch_s / own_s if own else 1.0,
    }  # fmt: skip
