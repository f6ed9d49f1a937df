"""From a comparison to a measured table: after `mccompile generate --compare --out FOLDER`,

    python -m tests.house.measured NAME "title" "the command that was run" FOLDER/comparison.json

writes docs/benchmarks/NAME.json; `make readme` then puts it into the pages.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.house.readme import BENCHMARKS

COLUMNS = (
    ("name", "run", ""), ("median", "seconds", ".1f"), ("speed_up", "speed-up", ".2f"), ("tokens", "tokens", ".0%"),
    ("flops", "FLOPs", ".0%"), ("psnr", "PSNR (dB)", ".1f"), ("ssim", "SSIM", ".3f"), ("judge", "prompt followed", ""),
)  # fmt: skip


def machine() -> str:
    """Cores, processor and torch of this machine, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()}, torch {version('torch')}"


def measured(comparison: Mapping[str, object], title: str, command: str, where: str, date: str) -> dict[str, object]:
    """The file that readme.table shows, from what `generate --compare` wrote."""
    found = comparison["rows"]
    assert isinstance(found, list)
    rows = [{key: row.get(key) for key, _, _ in COLUMNS} | {"judge": _judged(row.get("verdict"))} for row in found]
    return {
        "title": title, "command": command, "machine": where, "date": date, "columns": COLUMNS, "rows": rows,
    }  # fmt: skip


def _judged(verdict: Mapping[str, object] | None) -> str | None:
    if verdict is None:
        return None
    parts = [what for what in ("colour", "motion") if verdict[f"{what}_right"]]
    return " and ".join(parts) or "no"


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("title")
    parser.add_argument("command")
    parser.add_argument("comparison", type=Path)
    given = parser.parse_args()
    comparison = json.loads(given.comparison.read_text())
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    made = measured(comparison, given.title, given.command, machine(), today)
    (BENCHMARKS / f"{given.name}.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
