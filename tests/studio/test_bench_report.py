"""Reports as JSON, plots drawn from them, the options that are refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mccompile.generate.errors import OptionRefused, OutputRefused
from mccompile.studio.bench import commands, peers
from mccompile.studio.bench.plot import Axis, draw
from mccompile.studio.bench.report import SCHEMA, Column, Plot, Report, cell
from mccompile.studio.bench.timing import CallTimer, interleaved, ratio
from tests.house.readme import table

REPORT = Report(
    name="demo",
    title="A & B",
    columns=(Column("name", "run"), Column("ms", "ms", ".1f"), Column("psnr", "PSNR", ".1f")),
    rows=(
        {"name": "vanilla", "kind": "vanilla", "ms": 10.0, "share": 1.0, "realised_over_ideal": 1.0},
        {"name": "half", "kind": "ours", "ms": 6.0, "share": 0.5, "psnr": 30.0, "realised_over_ideal": 0.83},
        {"name": "broken", "kind": "peer"},
        {"kind": "nameless"},
    ),
    plot=Plot("share", "ms", "share", "ms", "kind", log_x=True),
    settings={"rounds": 1},
)


def test_the_file_has_the_machine_the_command_and_the_numbers(tmp_path: Path) -> None:
    text, picture = REPORT.write(tmp_path / "new", "mccompile bench demo")
    found = json.loads(text.read_text())
    assert found["schema"] == SCHEMA
    assert found["command"] == "mccompile bench demo"
    assert set(found["facts"]) == {
        "cpu", "cores", "threads", "isa", "torch", "diffusers", "python", "load", "gpu"
    }  # fmt: skip
    assert found["rows"] == [dict(r) for r in REPORT.rows]
    assert picture.read_text() == draw(found)


def test_the_pages_show_it(tmp_path: Path) -> None:
    text, _ = REPORT.write(tmp_path, "mccompile bench demo")
    shown = table(json.loads(text.read_text()))
    assert "| half | 6.0 | 30.0 |\n| broken | – | – |\n" in shown
    assert cell(REPORT.rows[2], REPORT.columns[1]) == "-"
    assert shown.count("| – | – | – |") == 1


def test_a_plot_has_a_point_for_each_row_that_has_one() -> None:
    root = ElementTree.fromstring(draw(REPORT.document("c")))
    marks = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len([m for m in marks if m.get("r") == "3.5"]) == 2
    assert "A & B" in {e.text for e in root.iter()}


@pytest.mark.parametrize("least", [0.0, -9.4])
def test_a_logarithmic_axis_leaves_out_what_is_not_above_0(least: float) -> None:
    """A difference of two times can be, where they are equal up to noise."""
    rows = (*REPORT.rows, {"name": "less", "kind": "ours", "ms": 5.0, "share": least})
    one, two = (draw(report.document("c")) for report in (REPORT, replace(REPORT, rows=rows)))
    assert one.count("<circle") == two.count("<circle")


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (3.0, 900.0, True), (5.0, 5.0, False), (-2, 9, False)]
)
def test_an_axis_holds_its_values_and_ticks(low: float, high: float, log: bool) -> None:
    axis = Axis.over([low, high], log, 50.0, 450.0)
    for value in (low, high, *axis.ticks()):
        assert 50.0 <= axis.pixel(value) <= 450.0
    assert len(axis.ticks()) >= 2
    assert axis.pixel(high) >= axis.pixel(low)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused):
        REPORT.write(tmp_path / "file" / "below", "c")


def test_ways_take_turns() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    found = interleaved(ways, 3, CallTimer(torch.device("cpu")))
    assert order == list("ab" * 4)
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert ratio((2.0, 4.0, 9.0), (1.0, 2.0, 1.0)) == 2.0


def test_the_summary_is_the_least_of_all_but_vanilla() -> None:
    assert commands.summary((REPORT,)) == {"benchmark": "demo", "realised_over_ideal_min": 0.83}


@pytest.mark.parametrize(
    ("what", "model", "device", "real", "said"),
    [
        ("ladder", "embedded", "cpu", True, "torch sees none"),
        ("overhead", "embedded", "cpu", True, "only the ladder has real sizes"),
        ("scaling", "somewhere", "cpu", False, "sizes of its own"),
    ],
)
def test_options_that_mean_nothing_are_refused(what: str, model: str, device: str, real: bool, said: str) -> None:
    with pytest.raises(OptionRefused, match=said):
        commands.Options.of(what, model, device, "eager", None, False, real, "wall")  # type: ignore[arg-type]


def test_peers_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda: False)
    with pytest.raises(OptionRefused, match=r"pip install 'mccompile\[peers\]'"):
        commands.Options.of("peers", "embedded", "cpu", "eager", None, False, False, "wall")


