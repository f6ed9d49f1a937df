"""Numbers in pages come from files: each marked table is what its file in docs/benchmarks says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.house.blocks import pages
from tests.house.measured import measured
from tests.house.readme import BENCHMARKS, MARKS, filled, table
from tests.house.tree import ROOT

FILE = {
    "title": "T", "command": "c", "machine": "m", "date": "d",
    "columns": [["run", "run", ""], ["seconds", "seconds", ".1f"], ["share", "computed", ".0%"]],
    "rows": [{"run": "a", "seconds": 1.25, "share": 0.5}, {"run": "b", "seconds": 2}],
}  # fmt: skip


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_what_was_measured(page: Path) -> None:
    text = page.read_text()
    assert filled(text) == text, "run `make readme`"


def test_every_measurement_is_shown() -> None:
    texts = [page.read_text() for page in pages()]
    marked = {match["name"] for text in texts for match in MARKS.finditer(text)}
    files = {path.stem for path in BENCHMARKS.glob("*.json")}
    linked = {name for name in files for text in texts if f"benchmarks/{name}." in text}
    assert sorted(files - marked - linked) == []


def test_a_table_is_filled(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(FILE))
    text = "before\n<!-- table demo -->\nold\n<!-- end demo -->\nafter\n"
    new = filled(text, tmp_path)
    assert "| run | seconds | computed |\n| --- | --: | --: |\n| a | 1.2 | 50% |\n| b | 2.0 | – |\n" in new
    assert "old" not in new
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert filled(new, tmp_path) == new


def test_a_table_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filled("<!-- table demo -->\n<!-- end demo -->\n", tmp_path)


def test_a_mark_chooses_rows_and_columns(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(FILE))
    new = filled("<!-- table demo: b; a | computed; run -->\n<!-- end demo -->\n", tmp_path)
    assert "| computed | run |\n| --: | --- |\n| – | b |\n| 50% | a |\n" in new
    assert filled(new, tmp_path) == new


@pytest.mark.parametrize("mark", ["c | run", "a | speed"])
def test_a_mark_that_chooses_what_was_not_measured_is_an_error(mark: str, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(FILE))
    with pytest.raises(KeyError):
        filled(f"<!-- table demo: {mark} -->\n<!-- end demo -->\n", tmp_path)


def test_a_comparison_becomes_a_table() -> None:
    verdict = {"colour_right": True, "motion_right": False, "colour_seen": "red", "motion_seen": None, "confidence": 1}
    row = {"name": "vanilla", "median": 10.0, "speed_up": 1.0, "tokens": 1.0, "flops": 1.0, "psnr": None, "ssim": 1.0}
    made = measured({"rows": [{**row, "verdict": verdict, "seconds": [10.0]}]}, "T", "c", "m", "d")
    assert "| vanilla | 10.0 | 1.00 | 100% | 100% | – | 1.000 | colour |" in table(json.loads(json.dumps(made)))
