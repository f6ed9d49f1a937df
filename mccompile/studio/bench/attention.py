"""Attention on this CPU: torch's and the project's kernel over a sweep of shapes, and which of them is chosen."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

from mccompile.backend.native.choice import TimingTable, seconds, seconds_of_torch, table_for
from mccompile.studio.bench.report import Column, Json, Plot, Report, Row

COLUMNS = (
    Column("dtype", "dtype"), Column("threads", "threads"), Column("width", "head width"),
    Column("queries", "queries"), Column("keys", "keys"),
    Column("torch_ms", "torch, ms", ".3f"), Column("own_ms", "own kernel, ms", ".3f"), Column("chosen", "chosen"),
    Column("speed_up", "chosen by torch", ".2f"),
)  # fmt: skip
SHORT = (
    Column("dtype", "dtype"), Column("threads", "threads"), Column("width", "head width"),
    Column("shapes", "shapes", "d"), Column("own", "to the own kernel", "d"),
    Column("least", "chosen by torch, least", ".2f"), Column("median", "median", ".2f"), Column("most", "most", ".2f"),
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
    """One row per dtype, number of threads (one, and all) and shape. One head per thread.

    The kernel computes in float32. In bfloat16 all attention is torch's.
    """
    every = torch.get_num_threads()
    rows: list[Row] = []
    for threads in sorted({1, every}):
        with _threads(threads):
            for dtype in (torch.float32, torch.bfloat16):
                rows += [row for width in sweep.widths for row in _rows(sweep, dtype, width, threads)]
    return Report(
        name="attention",
        title="Attention over prefixes, one head for each thread",
        columns=COLUMNS,
        rows=tuple(rows),
        plot=Plot("queries", "speed_up", "queries", "torch's time by that of the choice", "series", log_x=True),
        settings={"threads": every, "rounds": sweep.rounds},
    )


def short(swept: Report) -> Report:
    """The sweep in one row per dtype, number of threads and width: how much faster the choice is than torch."""
    rows = []
    for group, points in groupby(swept.rows, lambda r: (r["dtype"], r["threads"], r["width"])):
        some = list(points)
        gains = [float(r["speed_up"]) for r in some]  # type: ignore[arg-type]
        dtype, threads, width = group
        rows.append({
            "dtype": dtype, "threads": threads, "width": width, "shapes": len(some),
            "own": sum(r["chosen"] == "own" for r in some), "least": min(gains), "median": statistics.median(gains),
            "most": max(gains), "series": f"{dtype}, {threads} thread(s)",
        })  # fmt: skip
    plot = Plot("width", "median", "head width", "torch's time by that of the choice, median", "series", log_x=True)
    return Report("attention_short", swept.title, SHORT, tuple(rows), plot, swept.settings)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, torch works with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(sweep: Sweep, dtype: torch.dtype, width: int, threads: int) -> Iterator[Row]:
    table = table_for(width, threads) if dtype == torch.float32 else None
    name = str(dtype).removeprefix("torch.")
    for queries in sweep.queries:
        for keys in sweep.keys:
            if queries * keys <= sweep.largest:
                about: dict[str, Json] = {
                    "dtype": name, "threads": threads, "width": width, "queries": queries, "keys": keys,
                    "series": f"{name}, {threads} thread(s), width {width}, {keys} keys",
                }  # fmt: skip
                yield about | _times(table, dtype, queries, keys, width, threads, sweep.rounds)


def _times(
    table: TimingTable | None, dtype: torch.dtype, queries: int, keys: int, width: int, threads: int, rounds: int
) -> dict[str, Json]:
    if table is None:
        torch_s = seconds_of_torch(queries, keys, width, threads, dtype, rounds)
        return {"torch_ms": torch_s * 1e3, "chosen": "torch", "speed_up": 1.0}
    torch_s, own_s = seconds(queries, keys, width, threads, rounds)
    own = table.own_is_faster(queries, keys)
    return {
        "torch_ms": torch_s * 1e3, "own_ms": own_s * 1e3, "chosen": "own" if own else "torch",
        "speed_up": torch_s / own_s if own else 1.0,
    }  # fmt: skip
