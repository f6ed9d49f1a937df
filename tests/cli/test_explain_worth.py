"""explain: where values come from, why every step is what it is, and whether a run is worth it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mccompile.cli.steps_told import steps_svg
from mccompile.cli.words import worth_lines
from mccompile.generate.worth import Worth
from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.policy.flow import flow_grid
from mccompile.policy.groups import bounds_of
from mccompile.policy.planner import plan, read_plan
from mccompile.policy.reasons import reasons
from mccompile.policy.rules import Static
from mccompile.resources import shipped_policies
from tests.cli.conftest import Shell

NOTHING = Static({}, frozenset())


def test_parameters_say_where_they_come_from(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "mine.policy"
    file.write_text("policy mine extends motioncache { param warmup = 7 }")
    text = shell("explain", file, "--set", "floor=70%").out
    lines = {line.split()[0]: line.split() for line in text.split("Parameters")[1].split("\n\n")[0].splitlines()[1:]}
    assert lines["floor"][1:] == ["70%", "0%..100%", "--set"]
    assert lines["warmup"][-1] == "default"
    assert lines["threshold"][-1].endswith("policies/motioncache.policy:3")


def test_every_step_has_its_values_and_its_reason(shell: Shell) -> None:
    lines = shell("explain", "magcache", "--stage", "steps", "--steps", 14).out.splitlines()
    assert lines[0].split("  ")[0] == "step"
    assert lines[1].endswith("nothing is kept yet")
    assert lines[8].endswith("the condition holds, and 4 reuses in a row are the most: "
                             "accumulate(error) 0.08134 < threshold 0.12")  # fmt: skip
    assert lines[12].split()[1:5] == ["cache", "compute", "0.07646", "0"]
    assert "account" not in shell("explain", "fixed_interval", "--stage", "steps", "--steps", 4).out


@pytest.mark.parametrize("name", shipped_policies())
def test_reasons_agree_with_the_plan(name: str) -> None:
    for bound in bounds_of(bind(load_policy(name), {})).values():
        grid = flow_grid(20)
        made = plan(bound, grid, {}, frozenset())
        for cell, reason in zip(made.cells, reasons(bound, grid, NOTHING), strict=True):
            assert reason.action == cell.action
            assert reason.phase == (None if cell.phase is None else made.phases[cell.phase])
            assert reason.why
            if cell.account is not None and reason.before:
                assert dict(reason.before).get("account", cell.account) == cell.account


def test_one_object_has_all_of_it(shell: Shell) -> None:
    found = json.loads(shell("explain", "magcache", "--json", "--steps", 14, "--set", "patience=2").out)
    assert found["format"] == "mccompile explain 1"
    assert [(p["name"], p["value"], p["from"]) for p in found["parameters"]][1] == ("patience", 2.0, "--set")
    assert [phase["decided"].split(":")[0] for phase in found["phases"]] == ["static", "static"]
    assert len(found["steps"][""]) == 14
    assert found["steps"][""][3]["compared"][0]["limit"] == pytest.approx(0.12)
    assert found["worth"] is None


def test_is_it_worth_a_run(shell: Shell) -> None:
    text = shell("explain", "fixed_interval", "--steps", 12).out.split("Should I run this?")[1]
    assert "steps computed  50%  of 12" in text
    assert "--model NAME" in text
    assert "the model or data decides 45 of the steps" in shell("explain", "motioncache").out
    made = plan(bind(load_policy("fixed_interval"), {}), flow_grid(12), {}, frozenset())
    lines = list(worth_lines(made, Worth((0.5, 0.5), (0.4, 0.5), 2_500_000)))
    assert [line.split()[0] for line in lines] == ["steps", "tokens", "FLOPs", "speed-up", "kept"]
    assert lines[3].split()[1:4] == ["2.00", "to", "2.50"]
    for share, said in ((0.625, "62%  of those that tokens may see"), (1.0, "100%  none is left out at this size")):
        lines = list(worth_lines(made, Worth((0.5, 0.5), (0.4, 0.5), 2_500_000, share)))
        assert " ".join(lines[4].split()).startswith(" ".join(f"keys read {said}".split()))


def test_the_plan_is_drawn(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    result = shell("explain", "magcache", "--steps", 14, "--svg", file)
    assert result.status == 0
    tree = ET.fromstring(file.read_text())
    titles = [node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.split(",")[0] for title in titles] == [f"step {i}" for i in range(14)]
    cells = read_plan(shell("explain", "magcache", "--steps", 14, "--stage", "plan").out).cells
    words = {"compute": "computed", "reuse": "reused"}
    assert all(words[cell.action] in title for cell, title in zip(cells, titles, strict=True))
    there = shell("explain", "magcache", "--svg", tmp_path / "none" / "plan.svg")
    assert there.status == 2
    steps = reasons(bind(load_policy("policy p { phase a { compute } }"), {}), flow_grid(3), NOTHING)
    assert "&lt;b&gt;" in steps_svg("<b>", steps)


@pytest.mark.slow
def test_regions_of_a_model_have_a_plan_each(shell: Shell) -> None:
    said = shell("explain", "deltadit", "--model", "embedded", "--steps", 8).out
    assert said.count("steps computed  75%  of 8") == 2
    assert "with --model NAME" not in said


@pytest.mark.slow
def test_a_model_tells_tokens_flops_and_bytes(shell: Shell) -> None:
    found = json.loads(shell("explain", "fixed_interval", "--model", "embedded", "--steps", 12, "--json").out)
    worth = found["worth"]
    assert worth["tokens"] == [0.5, 0.5]
    assert 0.5 < worth["flops"][0] == worth["flops"][1] < 0.7
    assert worth["kept"] > 0
    teacache = json.loads(shell("explain", "teacache", "--model", "embedded", "--steps", 12, "--json").out)
    assert {step["action"] for step in teacache["steps"][""]} <= {"compute", "reuse"}
