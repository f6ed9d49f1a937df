"""check, fmt, policies, explain, models."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy, load_policy
from mccompile.language.parse import parse
from mccompile.policy.groups import policies, views
from mccompile.policy.plan_text import heading, read_plans
from mccompile.policy.planner import read_plan, show_plan
from mccompile.policy.text import read, show
from mccompile.resources import shipped_policies
from tests.cli.conftest import Shell

UGLY = "policy ugly{phase all{compute}}"
WRONG = "policy wrong { phase all { reuse chunk while drift < 0.1 } }"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, text in (("ugly", UGLY), ("wrong", WRONG), ("torn", "policy torn {")):
        found[name] = tmp_path / f"{name}.policy"
        found[name].write_text(text)
    return found


def test_check_goes_on_after_an_error(files: dict[str, Path], shell: Shell) -> None:
    result = shell("check", files["wrong"], "motioncache", files["torn"], files["ugly"])
    assert result.status == 1
    assert result.out == f"motioncache: ok\n{files['ugly']}: ok\n"
    assert "error[MC0201]" in result.err
    assert f"--> {files['torn']}:1" in result.err


def test_check_of_every_shipped_policy(shell: Shell) -> None:
    assert shell("check", *shipped_policies()).status == 0


def test_check_of_nothing_there(shell: Shell, tmp_path: Path) -> None:
    result = shell("check", tmp_path / "none.policy")
    assert (result.status, result.out) == (1, "")
    assert "error[MC0109]" in result.err


def test_fmt(files: dict[str, Path], shell: Shell) -> None:
    asked = shell("fmt", "--check", files["ugly"])
    assert (asked.status, asked.out) == (1, f"{files['ugly']}: would change\n")
    assert files["ugly"].read_text() == UGLY
    assert shell("fmt", files["ugly"]).out == f"{files['ugly']}: formatted\n"
    assert files["ugly"].read_text() == format_policy(parse(find_policy(UGLY)))
    again = shell("fmt", "--check", files["ugly"])
    assert (again.status, again.out) == (0, "")


def test_fmt_leaves_what_it_cannot_read(files: dict[str, Path], shell: Shell) -> None:
    result = shell("fmt", files["torn"], files["ugly"])
    assert result.status == 1
    assert "error[MC0103]" in result.err
    assert files["torn"].read_text() == "policy torn {"
    assert files["ugly"].read_text() != UGLY


def test_fmt_of_stdin(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(UGLY))
    assert shell("fmt", "-").out == format_policy(parse(find_policy(UGLY)))


def test_policies(shell: Shell) -> None:
    lines = shell("policies").out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_policies())
    assert all(len(line.split()) > 3 for line in lines)
    assert shell("policies", "exact").out == find_policy("exact").text
    missing = shell("policies", "motioncash")
    assert missing.status == 1
    assert "did you mean `motioncache`" in missing.err


def test_models(shell: Shell) -> None:
    result = shell("models")
    assert result.status == 0
    assert result.out.startswith("embedded  ")


@pytest.mark.parametrize("policy", shipped_policies())
def test_explain(policy: str, shell: Shell) -> None:
    """Everything is said in order, and every phase, parameter and signal is named."""
    result = shell("explain", policy)
    assert result.status == 0, result.err
    ir = load_policy(policy)
    assert result.out.startswith(policy)
    heads = ["What it does", "Parameters", "Signals", "Phases", "Plan"]
    there = [h for h in heads if f"\n{h}" in result.out]
    assert [result.out.index(f"\n{h}") for h in there] == sorted(result.out.index(f"\n{h}") for h in there)
    assert {"What it does", "Phases", "Plan"} <= set(there)
    for name in (*(p.name for p in ir.phases), *(p.name for p in ir.params), *(s.name for s in ir.signals)):
        assert f"\n  {name} " in result.out


def test_explain_says_what_is_settled(shell: Shell) -> None:
    text = shell("explain", "motioncache").out
    assert "coarse  static, once the model's timestep embedding is known" in text
    assert "fine    dynamic" in text
    assert "(approximate)" in text
    assert "cache  static: the clock and the parameters decide" in shell("explain", "magcache").out
    assert "reuse as taylor(residual, order = 2): the last 3 results are kept" in shell("explain", "taylorseer").out
    assert "(exact)" in shell("explain", "exact").out


@pytest.mark.parametrize("policy", shipped_policies())
def test_stages_read_back(policy: str, shell: Shell) -> None:
    """Law 7: what is printed is what was there."""
    ir = load_policy(policy)
    assert load_policy(shell("explain", policy, "--stage", "ast").out) == ir
    assert read(shell("explain", policy, "--stage", "ir").out) == ir
    steps = () if policy.startswith("step_mask") else ("--steps", 20)
    plan = shell("explain", policy, "--stage", "plan", *steps).out
    plans = read_plans(plan)
    heads = {view.name: heading(view, views(ir)) for view in views(ir)}
    shown = (f"{head}\n" if head else "" for head in heads.values())
    assert "\n".join(head + show_plan(made) for head, made in zip(shown, plans.values(), strict=True)) == plan
    assert tuple(plans) == tuple(policies(ir))
    assert show(ir) == show(read(show(ir)))


def test_plans_of_branches_and_regions_have_headings(shell: Shell, tmp_path: Path) -> None:
    """Branches are called branches; both are named where both decide apart."""
    text = shell("explain", "cfgcache", "--stage", "plan", "--steps", 6).out
    assert re.findall(r"^(.*)\nplan", text, re.MULTILINE) == ["other branches", "branch uncond"]
    policy = tmp_path / "both.policy"
    policy.write_text("""policy both {
  phase first for 2 steps { compute }
  phase late {
    front: compute every 2 steps
    uncond: compute every 3 steps
  }
  layers front = blocks[0..50%] { keep residual }
  layers blocks[50%..] { keep residual }
}
""")
    text = shell("explain", policy, "--stage", "plan", "--steps", 6).out
    assert re.findall(r"^(.*)\nplan", text, re.MULTILINE) == [
        "other branches, regions front", "other branches, other regions",
        "branch uncond, regions front", "branch uncond, other regions",
    ]  # fmt: skip
    assert tuple(read_plans(text)) == ("front", "", "uncond front", "uncond")


def test_explain_under_parameters(shell: Shell) -> None:
    plan = read_plan(shell("explain", "motioncache", "--stage", "plan", "--steps", 9, "--set", "warmup=7").out)
    assert [c.action for c in plan.cells] == ["compute"] * 7 + ["dynamic"] * 2
    wrong = shell("explain", "motioncache", "--set", "warm=7")
    assert wrong.status == 1
    assert "error[MC0301]" in wrong.err


def test_explain_a_code(shell: Shell) -> None:
    assert shell("explain", "MC0203").out.startswith("# MC0203")
    assert shell("explain", "mc0203").out == shell("explain", "MC0203").out
    unknown = shell("explain", "MC0999")
    assert (unknown.status, unknown.out) == (2, "")
    assert "no error has the code `MC0999`" in unknown.err


def test_explain_of_a_pass_that_does_not_exist(shell: Shell) -> None:
    result = shell("explain", "motioncache", "--stage", "graph", "--after", "hoists")
    assert (result.status, result.out) == (1, "")
    assert result.err == "error[MC0506]: there is no pass `hoists`\nhelp: did you mean `hoist`?\n"


def test_explain_of_a_pass_at_another_stage(shell: Shell) -> None:
    result = shell("explain", "motioncache", "--stage", "plan", "--after", "hoist")
    assert (result.status, result.out) == (2, "")
    assert result.err == "--after and --verify are of `--stage graph`, not of `--stage plan`\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("explain", "exact", "--steps", "0"), "is not a whole number of at least 1"),
        (("explain", "exact", "--steps", "-1"), "is not a whole number of at least 1"),
        (("explain", "exact", "--steps", "nan"), "is not a whole number of at least 1"),
        (("explain", "exact", "--steps", "1" + "0" * 30), "is not a whole number of at least 1"),
        (("explain", "exact", "--steps", "1000000000"), "`1000000000` is not a whole number from 1 to 10,000"),
        (("explain", "exact", "--stage", "memory", "--size", "0x64x1"), "is not HEIGHTxWIDTHxFRAMES"),
        (("explain", "exact", "--stage", "memory", "--size", "64x99999x1"), "from 1 to 16,384"),
        (("explain", "exact", "--stage", "memory", "--size", "64x64x" + "9" * 5000), "is not a whole number"),
        (("explain", "exact", "--stage", "memory", "--model", ""), "the name is empty"),
        (("explain", "exact", "--stage", "memory", "--steps", "9"), "--steps means nothing for `--stage memory`"),
        (("explain", "exact", "--stage", "ir", "--model", "x"), "--model means nothing for `--stage ir`"),
        (("explain", "exact", "--size", "64x64x9"), "--size means nothing for a policy without `--stage`"),
        (("explain", "MC0203", "--set", "a=1"), "--set means nothing for the page of a code"),
        (("explain", "MC0203", "--verify"), "--verify means nothing for the page of a code"),
        (("explain", "teacache", "--set", "threshold=nan"), "is neither NAME=NUMBER"),
        (("explain", "exact", "--stage", "plan", "--model", ""), "the name is empty"),
        (("explain", ""), "error[MC01"),
        (("bench", "ladder", "--threads", "1000000"), "is not a whole number from 1 to 1,024"),
        (("bench", "ladder", "--threads", "0"), "is not a whole number of at least 1"),
        (("bench", "ladder", "--repeat", "nan"), "is not a whole number of at least 1"),
        (("bench", "ladder", "--out", ""), "it is empty"),
        (("bench", "ladder", "--backend", "eager", "--model", ""), "the name is empty"),
        (("bench", "ladder", "--backend", "eager", "--out", "/proc/none/x"), "error[MC0707]"),
        (("bench", ""), "invalid choice"),
        (("generate", "--steps", "1000000000"), "from 1 to 10,000"),
        (("generate", "--height", "1000000000"), "from 1 to 16,384"),
        (("generate", "--frames", "1000000000"), "from 1 to 100,000"),
    ],
)
def test_numbers_and_names_that_mean_nothing_are_refused_before_any_work(
    shell: Shell, words: tuple[str, ...], says: str
) -> None:
    result = shell(*words)
    assert result.status in (1, 2)
    assert result.out == ""
    assert says in result.err


@pytest.mark.parametrize("value", ["２", "1_0", "0x2", "1e", "--2", ""])
def test_a_number_is_written_as_the_language_writes_it(value: str, shell: Shell) -> None:
    result = shell("explain", "taylorseer", "--set", f"interval={value}")
    assert result.status == 2
    assert "is neither NAME=NUMBER nor NAME=ALTERNATIVE" in result.err
    assert shell("explain", "taylorseer", "--set", "interval= 3 steps ").status == 0


def test_no_character_of_a_comment_turns_a_terminal(tmp_path: Path, shell: Shell) -> None:
    path = tmp_path / "turned.policy"
    path.write_text("policy p {\n  # \u202e漢\u0007\n  phase all { compute }\n}\n", encoding="utf-8")
    out = shell("explain", path).out
    assert "\\u202e漢\\x07" in out
    assert out.isprintable() or {c for c in out if not c.isprintable()} == {"\n"}
