"""The form of a diagnostic, as rustc's."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help, Label, nearest, words
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language.parse import parse

LINES = [f"line {n}" for n in range(1, 13)]
LINES[4] = "    compute all for steps 0..4"
LINES[6] = "    reuse attn for steps 3..20 every 2"
SOURCE = Source("policies/wan_fast.policy", "\n".join(LINES))


@dataclass(frozen=True, slots=True)
class Claimed(Diagnostic):
    code = "MC0203"
    title = "step claimed by {n} rules"
    label = "claims steps 3 and 4 again"
    note = "at each step a site has exactly one action"
    n: str

    def secondary(self) -> tuple[Label, ...]:
        start = SOURCE.text.index("steps 0..4")
        return (Label(SOURCE.span(start, start + 10), "first claim"),)

    def helps(self) -> tuple[Help, ...]:
        three = SOURCE.text.index("3..20")
        return (Help("begin the reuse after the pinned steps", Edit(SOURCE.span(three, three + 1), "5")),)


def at(text: str, source: Source = SOURCE) -> tuple[int, int]:
    start = source.text.index(text)
    return start, start + len(text)


def test_the_form_of_the_style_guide() -> None:
    shown = render([Claimed(SOURCE.span(*at("steps 3..20")), "two")])
    assert shown == (
        "error[MC0203]: step claimed by two rules\n"
        "  --> policies/wan_fast.policy:7:20\n"
        "   |\n"
        " 5 |     compute all for steps 0..4\n"
        "   |                     ---------- first claim\n"
        " 7 |     reuse attn for steps 3..20 every 2\n"
        "   |                    ^^^^^^^^^^^ claims steps 3 and 4 again\n"
        "   |\n"
        "   = note: at each step a site has exactly one action\n"
        "help: begin the reuse after the pinned steps\n"
        "   |\n"
        " 7 |     reuse attn for steps 5..20 every 2\n"
        "   |                          ~\n"
    )


@dataclass(frozen=True, slots=True)
class Plain(Diagnostic):
    code = "MC0999"
    title = "something in {where}"
    label = "here"
    where: str


def test_line_numbers_of_different_width_are_aligned() -> None:
    lines = render([Plain(SOURCE.span(*at("line 12")), "line 12")]).splitlines()
    assert lines[1] == "   --> policies/wan_fast.policy:12:1"
    assert lines[3:] == [" 12 | line 12", "    | ^^^^^^^ here"]


def test_tabs_and_the_end_of_the_text() -> None:
    source = Source.of_text("\tx = 1")
    assert "    x = 1\n   |     ^ here" in render([Plain(source.span(1, 2), "")])
    assert "1 | \n" not in render([Plain(source.span(6, 6), "")])
    assert render([Plain(Source.of_text("").span(0, 0), "")]).endswith("^ here\n")


def test_a_span_over_several_lines_is_marked_on_its_first() -> None:
    source = Source.of_text("one {\n two\n}")
    assert "1 | one {\n   | ^^^^^ here\n" in render([Plain(source.span(0, 12), "")])


def test_without_a_place() -> None:
    assert render([Plain(None, "no file")]) == "error[MC0999]: something in no file\n"


def test_an_exception_shows_its_diagnostics() -> None:
    error = PolicyError([Plain(None, "a"), Plain(None, "b")])
    assert "something in a" in str(error)
    assert "something in b" in str(error)


def test_words_and_nearest() -> None:
    assert words(["a"]) == "`a`"
    assert words(["a", "b", "c"], "and") == "`a`, `b` and `c`"
    assert nearest("Treshold", ["threshold", "floor"]) == "threshold"
    assert nearest("zzz", ["threshold", "floor"]) is None


def test_no_character_reaches_the_terminal_that_it_would_obey() -> None:
    source = Source("a\x1b[2J.policy", "policy p { \x1b[31m\u202e\xa0 phase }")
    with pytest.raises(PolicyError) as refused:
        parse(source)
    text = render(refused.value.diagnostics)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert " 1 | policy p { \\x1b[31m\\u202e\\xa0 phase }\n   |            ^^^^ not part" in text
