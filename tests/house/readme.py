"""Puts measured tables into pages: `python -m tests.house.readme` rewrites what stands between the marks

    <!-- table NAME -->
    <!-- end NAME -->

of README.md and docs/*.md from docs/benchmarks/NAME.json; a test checks that page and file agree. Such a file holds

    {"title": "...", "command": "...", "machine": "...", "date": "2026-11-22",
     "columns": [["key", "heading", "format"], ...], "rows": [{"key": value, ...}, ...]}

A format is that of str.format (".1f", ".0%"); a row without a key, or with null, shows a dash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.house.blocks import pages
from tests.house.tree import DOCS

BENCHMARKS = DOCS / "benchmarks"
MARKS = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def table(measured: Mapping[str, object]) -> str:
    """The Markdown table of one file, what was run and where below it."""
    columns, rows = measured["columns"], measured["rows"]
    assert isinstance(columns, Sequence)
    assert isinstance(rows, Sequence)
    lines = ["| " + " | ".join(heading for _, heading, _ in columns) + " |"]
    lines.append("| " + " | ".join("--:" if shape else "---" for *_, shape in columns) + " |")
    for row in rows:
        shown = (_cell(row.get(key), shape) for key, _, shape in columns)
        lines.append("| " + " | ".join(shown) + " |")
    where = f"{measured['title']}: `{measured['command']}`, {measured['machine']}, {measured['date']}."
    return "\n".join((*lines, "", where)) + "\n"


def _cell(value: object, shape: str) -> str:
    if value is None:
        return "–"
    return f"{value:{shape}}" if isinstance(value, int | float) and shape else str(value)


def filled(text: str, folder: Path = BENCHMARKS) -> str:
    """The page with every marked table as its file says. Raises FileNotFoundError for a table without a file."""
    return MARKS.sub(lambda m: m[1] + table(json.loads((folder / f"{m['name']}.json").read_text())) + m[3], text)


def main() -> None:
    """Rewrites the pages."""
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)


if __name__ == "__main__":
    main()
