"""Functions of policies and libraries: a call is what it stands for, written out; files are read within bounds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language.fmt import format_policy
from mccompile.language.load import load_choices, load_policy
from mccompile.language.parse import parse
from tests.language.written_out import CALLED, WRITTEN

LIBRARY = """policy motions {
  # How far a token moved beyond a limit.
  function beyond(x, limit = 0.1, cell = token) = max(rel_l1(x, over = cell) - limit, 0)
}
"""
POLICY = """policy p {{
  use "motions.policy"

  phase all {{ reuse token while {condition} }}

  layers blocks[*] {{ keep residual }}
}}
"""


def loaded(text: str, folder: Path | None = None) -> ir.PolicyIR:
    return load_policy(Source("p.policy", text, None if folder is None else folder / "p.policy"))


def refused(text: str, folder: Path) -> str:
    with pytest.raises(PolicyError) as error:
        loaded(text, folder)
    return render(error.value.diagnostics)


@pytest.mark.parametrize("name", CALLED)
def test_a_call_is_what_it_stands_for(name: str) -> None:
    made, wanted = loaded(CALLED[name]), loaded(WRITTEN[name])
    assert made == wanted
    parsed = parse(Source.of_text(CALLED[name]))
    again = format_policy(parsed)
    assert loaded(again) == wanted
    assert format_policy(parse(Source.of_text(again))) == again


def test_a_library_beside_the_policy(tmp_path: Path) -> None:
    (tmp_path / "motions.policy").write_text(LIBRARY)
    made = loaded(POLICY.format(condition="accumulate(beyond(latent, 0.2)) < 0.5"), tmp_path)
    (rule,) = (phase.rule for phase in made.phases)
    change = ir.Change("rel_l1", ir.SourceRef("latent"), "step", ir.Granularity.TOKEN)
    moved = ir.Apply("max", (ir.Apply("sub", (change, ir.Const(0.2))), ir.Const(0.0)))
    assert isinstance(rule, ir.Reuse)
    assert rule.condition == ir.Apply("lt", (ir.Accumulate(moved), ir.Const(0.5)))


def test_an_error_in_a_library_stands_at_the_call(tmp_path: Path) -> None:
    (tmp_path / "motions.policy").write_text("policy m { function calm(x) = smooth(x, by = 50%) | dilate() }")
    said = refused(POLICY.format(condition="accumulate(calm(sigma)) < 0.5"), tmp_path)
    assert said.count("error[") == 1
    assert "p.policy:4:44" in said
    assert "called here" in said
    assert "motions.policy:1:31" in said


@pytest.mark.parametrize(
    ("library", "path", "says"),
    [
        (LIBRARY.replace("limit, 0)", "limitt, 0)"), "motions.policy", "did you mean `limit`?"),
        ("policy motions { signal a = rel_l1(latent) }", "motions.policy", "and this declares `signal a`"),
        ("policy motions extends teacache { }", "motions.policy", "holds functions alone"),
        ("policy motions { function a(x) = a(x) }", "motions.policy", "calls itself"),
        ("no policy", "motions.policy", "MC0101"),
        (LIBRARY, "../motions.policy", "outside of the policy's own folder"),
        (LIBRARY, "/etc/passwd", "does not end in `.policy`"),
        (LIBRARY, "none.policy", "MC0109"),
    ],
)
def test_files_that_are_no_libraries(library: str, path: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "motions.policy").write_text(library)
    text = POLICY.format(condition="accumulate(beyond(latent)) < 0.5").replace("motions.policy", path)
    assert says in refused(text, tmp_path / "inner")


def test_libraries_use_libraries_once(tmp_path: Path) -> None:
    """Two that use each other are read once each."""
    (tmp_path / "motions.policy").write_text(LIBRARY.replace("{\n", '{\n  use "other.policy"\n', 1))
    (tmp_path / "other.policy").write_text('policy o { use "motions.policy"  function half(x) = 0.5 * x }')
    made = loaded(POLICY.format(condition="accumulate(half(beyond(latent))) < 0.5"), tmp_path)
    assert any(isinstance(e, ir.Reuse) for e in (phase.rule for phase in made.phases))
    many = "".join(f' use "{n}.policy" ' for n in range(20))
    (tmp_path / "motions.policy").write_text(LIBRARY.replace("{\n", f"{{\n  {many}\n", 1))
    for n in range(20):
        (tmp_path / f"{n}.policy").write_text(f"policy o {{ function f{n}(x) = x }}")
    assert "more than 16 files" in refused(POLICY.format(condition="beyond(latent) < 0.5"), tmp_path)


def test_names_of_two_files_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "motions.policy").write_text(LIBRARY)
    text = POLICY.format(condition="beyond(latent) < 0.5").replace(
        "\n\n", "\n  function beyond(x) = 2 * rel_l1(x, over = token)\n\n", 1
    )
    assert "the function `beyond` is given twice" in refused(text, tmp_path)


def test_an_extension_replaces_a_function(tmp_path: Path) -> None:
    (tmp_path / "base.policy").write_text(
        """policy base {
  function size(x) = 2 * x
  phase all { reuse chunk while accumulate(size(rel_l1(latent))) < 0.5 }
  layers blocks[*] { keep residual }
}"""
    )
    made = loaded('policy p extends "base.policy" { function size(x) = x ^ 2 }', tmp_path)
    (rule,) = (phase.rule for phase in made.phases)
    assert isinstance(rule, ir.Reuse)
    assert "pow" in repr(rule.condition)


def test_a_library_by_itself(tmp_path: Path) -> None:
    said = refused(LIBRARY, tmp_path)
    assert said.count("error[") == 1
    assert "a file of functions is no policy by itself" in said


def test_functions_of_functions_stay_within_bounds(tmp_path: Path) -> None:
    """Each of thirty functions calls the one before it twice: a thousand million calls are not written out."""
    levels = "\n".join(f"  function f{n + 1}(x) = f{n}(x) + f{n}(x)" for n in range(30))
    text = f"""policy p {{
  function f0(x) = x + x
{levels}
  phase all {{ reuse chunk while accumulate(f30(rel_l1(latent))) < 0.5 }}
  layers blocks[*] {{ keep residual }}
}}"""
    start = time.process_time()
    said = refused(text, tmp_path)
    assert "MC0284" in said
    assert time.process_time() - start < 20


def test_alternatives_of_a_choice_may_be_functions() -> None:
    text = """policy p {
  function once(x) = rel_l1(x)
  function twice(x) = 2 * rel_l1(x)
  choose measure = once | twice
  phase all { reuse chunk while accumulate(measure(latent)) < 0.1 }
  layers blocks[*] { keep residual }
}"""
    source = Source.of_text(text)
    assert load_choices(source) == {"measure": ("once", "twice")}
    assert load_policy(source, {"measure": "once"}) != load_policy(source, {"measure": "twice"})
