"""Forms of other languages get a help line with the right one, and several syntax errors are told at once."""

from __future__ import annotations

import pytest

from mccompile.diagnostics.diagnostic import Edit
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language.load import load_policy
from mccompile.language.parse import parse

POLICY = """policy p {
  param t = 0.1 in 0.01..0.5
  signal d = rel_l1(modulation) | polynomial("flux")
  phase a for 2 steps { compute }
  phase b { reuse chunk while d < t and d ^ 2 < 4 }
  layers blocks[2..-2] { keep residual }
  cache { budget: 2GB  refresh_last: yes }
}
"""
# what a user writes in place of what; the second is what the help writes
FORMS = [
    ("compute }\n  phase b", "compute };\n  phase b", "leave it out"),
    ("policy p {\n", "policy p { // mine\n", "begins with `#`"),
    ("policy p {\n", "policy p { /* mine */\n", "begins with `#`"),
    ("d < t and", "d < t &&", "joined by `and`"),
    ("d < t and", "d < t ||", "joined by `or`"),
    ("d < t and", "d == t and", "compared by"),
    ("while d < t and", "while !d < t and", "turned round by `not`"),
    ("signal d =", "signal d :=", "given by `=`"),
    ("d ^ 2", "d ** 2", "written `^`"),
    ('"flux"', "'flux'", "double quotes"),
    ('"flux"', "“flux”", "straight double quotes"),
    ("d < t", "d ≤ t", "two signs"),
    ("2..-2", "2:-2", "`blocks[2..-2]`"),
    ("0.01..0.5", "0.01-0.5", "two dots"),
    ("blocks[2..-2]", "blocks[2..–2]", "plain `-`"),
    ("for 2 steps", "for 10% of steps", "`while fraction < 10%`"),
    ("for 2 steps", "for\u00a02 steps", "no-break space"),
    ("policy p", "\ufeff\ufeffpolicy p", "byte order mark"),
    ("2GB", "2gb", "in full"),
    ("refresh_last: yes", "refresh_last: true", "`yes`"),
    (POLICY, '{"policy": {"threshold": 0.1}}', "JSON or YAML"),
    (POLICY, "policy: p\nthreshold: 0.1\n", "JSON or YAML"),
]


@pytest.mark.parametrize(("ours", "theirs", "told"), FORMS)
def test_a_foreign_form_gets_the_right_one(ours: str, theirs: str, told: str) -> None:
    load_policy(Source.of_text(POLICY))
    source = Source.of_text(POLICY.replace(ours, theirs, 1))
    with pytest.raises(PolicyError) as refused:
        load_policy(source)
    first = refused.value.diagnostics[0]
    helps = [*first.helps()]
    assert any(told in help_.text for help_ in helps), helps
    edit = next((help_.edit for help_ in helps if help_.edit is not None), None)
    if isinstance(edit, Edit) and ours.count(" ") < 3:  # what the help writes is no error of the same kind again
        mended = source.text[: edit.span.start] + edit.text + source.text[edit.span.end :]
        assert mended != source.text


def refused_lines(text: str) -> list[int]:
    with pytest.raises(PolicyError) as refused:
        parse(Source.of_text(text))
    return [d.span.line for d in refused.value.diagnostics if d.span is not None]


def test_several_syntax_errors_are_told_at_once() -> None:
    text = POLICY.replace("0.01..0.5", "0.01-0.5").replace("signal d =", "signal d :=").replace("2..-2", "2:-2")
    assert refused_lines(text) == [2, 3, 6]
    assert len(refused_lines(POLICY + "x")) == 1
    many = "".join(f"  signal s{i} := 1\n" for i in range(20))
    assert len(refused_lines(f"policy p {{\n{many}}}\n")) == 8


def test_no_cascade_hides_the_cause() -> None:
    """Where it is not certain which declaration an error belongs to, the first one stands alone."""
    assert refused_lines("policy p {\n  phase a { compute\n  phase b { compute }\n  phase c compute }\n}\n") == [3]


def test_a_missing_brace_is_marked_where_it_was_opened() -> None:
    with pytest.raises(PolicyError) as refused:
        parse(Source.of_text("policy p {\n  phase a { compute\n  phase b { compute }\n}\n"))
    (found,) = refused.value.diagnostics
    (label,) = found.secondary()
    assert (label.span.line, label.span.column) == (2, 11)
