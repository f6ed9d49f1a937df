"""What is wrong with compiled graphs and tiles, in words, and the table of them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence

Row = Mapping[str, object]
COLUMNS = (
    ("graph", "graph", ""), ("gpu", "GPU", ""), ("kernels", "Triton kernels", ""), ("extern", "torch's operators", ""),
    ("registers", "registers, at most", ""), ("spilled", "bytes spilled", ""), ("copies", "copies of buffers", ""),
)  # fmt: skip
KEPT_ON_HOST = 0  # operators of a package that go through Python


def wrong(row: Row) -> Iterator[str]:
    """Why a graph or tile is not as it must be."""
    if row.get("error"):
        yield f"{row['error']}"
        return
    if row["spilled"]:
        yield f"{row['spilled']} bytes spilled"
    if row.get("copies"):
        yield f"{row['copies']} copies of buffers"
    if row.get("custom"):
        yield f"{row['custom']} operators go through Python"
    operators = row.get("operators")
    if isinstance(operators, Mapping) and row.get("by_rows") and any("cudnn" in name for name in operators):
        yield "cuDNN attends to rows that a selection decides"
    if row.get("shared") and row["shared"] > row["shared_most"]:  # type: ignore[operator]
        yield f"{row['shared']} bytes of shared memory, and the GPU has {row['shared_most']}"


def problems(rows: Sequence[Row]) -> list[str]:
    """One line for each thing that is wrong."""
    return [f"{row['gpu']}, {row['graph']}: {why}" for row in rows for why in wrong(row)]


def document(rows: Sequence[Row], title: str, command: str, versions: str) -> dict[str, object]:
    """The file for docs/benchmarks (tests/house/readme.py)."""
    return {
        "title": title, "command": command, "machine": f"no GPU, {versions}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "columns": COLUMNS, "rows": list(rows),
    }  # fmt: skip
