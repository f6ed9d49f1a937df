"""Puts measured tables into pages: `python -m tests.house.readme` rewrites what stands between the marks

    <!-- table NAME -->
    <!-- end NAME -->

of README.md and docs/*.md from docs/benchmarks/NAME.json. A test checks that page and file agree. Such a file holds

    {"title": "...", "command": "...", "machine": "...", "date": "2026-11-22",
     "columns": [["key", "heading", "format"], ...], "rows": [{"key": value, ...}, ...]}

A format is one of str.format (".1f", ".0%"). A row without a key, or with null, shows a dash. A mark may choose rows by
the text of their first cell, and columns by their heading:

    <!-- table NAME: vanilla; exact | run; speed-up -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.house.blocks import pages
from tests.house.tree import DOCS

BENCHMARKS = DOCS / "benchmarks"
MARKS = re.compile(
    r"(?P<begin><!-- table (?P<name>[\w-]+)(?:: (?P<rows>[^|>\n]+?) \| (?P<columns>[^|>\n]+?))? -->\n)"
    r".*?(?P<end><!-- end (?P=name) -->)",
    re.DOTALL,
)


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


def chosen(measured: Mapping[str, object], rows: Sequence[str], headings: Sequence[str]) -> dict[str, object]:
    """The file with these rows and columns alone, in this order. Raises KeyError for one that it does not hold."""
    by_heading = {column[1]: column for column in measured["columns"]}  # type: ignore[attr-defined]
    first = measured["columns"][0][0]  # type: ignore[index]
    by_name = {row[first]: row for row in measured["rows"]}  # type: ignore[attr-defined]
    return {**measured, "columns": [by_heading[name] for name in headings], "rows": [by_name[name] for name in rows]}


def filled(text: str, folder: Path = BENCHMARKS) -> str:
    """The page with every marked table as its file says. Raises FileNotFoundError for a table without a file."""

    def fill(match: re.Match[str]) -> str:
        measured = json.loads((folder / f"{match['name']}.json").read_text())
        if match["rows"] is not None:
            measured = chosen(measured, match["rows"].split("; "), match["columns"].split("; "))
        return match["begin"] + table(measured) + match["end"]

    return MARKS.sub(fill, text)


def main() -> None:
    """Rewrites the pages."""
    for page in pages():
        text = page.read_text()
        if (new := filled(text)) != text:
            page.write_text(new)


if __name__ == "__main__":
    main()
