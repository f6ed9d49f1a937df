"""From text to the AST: what the grammar takes, and that it never fails but in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.builtins import RESERVED
from mccompile.language.load import find_policy, load_policy
from mccompile.language.parse import grammar, keywords, parse
from mccompile.resources import data_folder, shipped_policies

CASES = sorted((Path(__file__).parent.parent / "golden" / "ast").glob("*.policy"))
TEXTS = [find_policy(name).text for name in shipped_policies()]
TEXTS += [path.read_text(encoding="utf-8") for path in CASES]


def expression(text: str) -> ast.WrittenExpr:
    item = parse(Source.of_text(f"policy p {{ signal s = {text} }}")).items[0]
    assert isinstance(item, ast.SignalDecl)
    return item.expr


def phase(text: str) -> ast.PhaseDecl:
    item = parse(Source.of_text(f"policy p {{ phase x {text} }}")).items[0]
    assert isinstance(item, ast.PhaseDecl)
    return item


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("-a ^ b ^ c", "-(a ^ (b ^ c))"),
        ("a < b and c < d or e < f", "((a < b) and (c < d)) or (e < f)"),
        ("not a < b and c < d", "(not (a < b)) and (c < d)"),
        ("a * b | f(c) | g()", "((a * b) | f(c)) | g()"),
        ("a ^ -b * c", "(a ^ (-b)) * c"),
    ],
)
def test_precedence(text: str, grouped: str) -> None:
    assert expression(text) == expression(grouped)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("5", 5.0, ""), ("0.10", 0.1, ""), ("2e-3", 0.002, ""), ("40%", 0.4, "%"), ("12.5%", 0.125, "%")],
)
def test_numbers(text: str, value: float, unit: str) -> None:
    found = expression(text)
    assert isinstance(found, ast.Number)
    assert (found.value, found.unit, found.spelling) == (value, unit, text)


def test_words_that_begin_with_a_keyword_are_names() -> None:
    assert expression("steps_done + notice + orbit") == ast.Arithmetic(
        "+",
        ast.Arithmetic("+", *(ast.Ref(word, _anywhere()) for word in ("steps_done", "notice")), _anywhere()),
        ast.Ref("orbit", _anywhere()),
        _anywhere(),
    )


def _anywhere() -> ast.Span:
    return Source.of_text("").span(0, 0)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [("*", (0, -1)), ("3", (3, 3)), ("-1", (-1, -1)), ("8..", (8, -1)), ("..7", (0, 7)), ("2..-2", (2, -2))],
)
def test_blocks(text: str, ranges: tuple[int, int]) -> None:
    item = parse(Source.of_text(f"policy p {{ layers blocks[{text}] {{ compute }} }}")).items[0]
    assert isinstance(item, ast.LayersDecl)
    assert item.where is not None
    assert (item.where.first, item.where.last) == ranges


def test_spans_are_the_words() -> None:
    text = "policy p {\n  phase warm for 2 * n steps { reuse token while a < b  vote 50% of frames }\n}"
    found = parse(Source.of_text(text)).items[0]
    assert isinstance(found, ast.PhaseDecl)
    assert isinstance(found.when, ast.WhenForSteps)
    assert isinstance(found.rule, ast.ReuseRule)
    assert found.name.span.text == "warm"
    assert found.when.span.text == "for 2 * n steps"
    assert found.when.n.span.text == "2 * n"
    assert found.rule.condition.span.text == "a < b"
    assert found.rule.guards[0].span.text == "vote 50% of frames"
    assert (found.span.line, found.span.column) == (2, 3)


def test_every_keyword_is_reserved_and_no_function_is_a_keyword() -> None:
    written = set(re.findall(r"^_?[A-Z]+\.2: /\(?([a-z]+)", (data_folder("grammar") / "policy.lark").read_text(), re.M))
    assert written - {"a"} <= keywords()
    assert keywords() & RESERVED == {"step"}


def test_the_grammar_has_no_conflict() -> None:
    assert grammar().options.parser == "lalr"


def refused_in_words(text: str) -> None:
    """Loading `text` works, or ends in diagnostics that can be shown."""
    try:
        load_policy(Source.of_text(text))
    except PolicyError as error:
        diagnostics = error.diagnostics
    else:
        return
    assert render(diagnostics).startswith("error[MC0")
    assert all(diagnostic.span is not None for diagnostic in diagnostics)


@given(st.sampled_from(TEXTS), st.data())
@settings(max_examples=60)
def test_a_damaged_policy_is_refused_in_words(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        other = data.draw(st.sampled_from(TEXTS))
        at = data.draw(st.integers(0, len(other)))
        text = text[:start] + other[at : at + data.draw(st.integers(0, 12))] + text[end:]
    refused_in_words(text)


@given(st.sampled_from(TEXTS), st.data())
@settings(max_examples=60)
def test_a_policy_of_exchanged_words_is_refused_in_words(text: str, data: st.DataObject) -> None:
    words = re.findall(r'"[^"\n]*"|\w+|\S', re.sub(r"#[^\n]*", "", text))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(words) - 1))
        words[where] = data.draw(st.sampled_from(words))
    refused_in_words(" ".join(words))


NAMES = re.compile(r"(?<![\w\"])[a-z_]+[a-z_0-9]*(?![\w\"])")


@given(st.sampled_from(TEXTS), st.data())
@settings(max_examples=60)
def test_a_policy_of_exchanged_names_and_numbers_is_refused_in_words(text: str, data: st.DataObject) -> None:
    text = re.sub(r"#[^\n]*", "", text)
    for pattern in (NAMES, re.compile(r"\d+(?:\.\d+)?")):
        found = list(pattern.finditer(text))
        if not found:
            continue
        one, other = data.draw(st.sampled_from(found)), data.draw(st.sampled_from(found))
        text = text[: one.start()] + other[0] + text[one.end() :]
    refused_in_words(text)


@given(st.text(max_size=60))
def test_any_text_is_refused_in_words(text: str) -> None:
    refused_in_words(text)
    refused_in_words(f"policy p {{ {text} }}")


@pytest.mark.parametrize("inner", ["(", "-", "not ", "1 + ", "f(", "1 ^ "])
def test_deep_nesting_is_refused_in_words(inner: str) -> None:
    with pytest.raises(PolicyError) as refused:
        load_policy(Source.of_text(f"policy p {{ signal s = {inner * 5000}1{')' * 5000 if '(' in inner else ''} }}"))
    assert refused.value.diagnostics[0].code == "MC0110"


def test_a_long_chain_of_signals_is_refused_in_words() -> None:
    chain = " ".join(f"signal s{n} = s{n + 1} + 1" for n in range(500))
    text = f"policy p {{ {chain} signal s500 = sigma phase x {{ compute }} }}"
    with pytest.raises(PolicyError) as refused:
        load_policy(Source.of_text(text))
    assert refused.value.diagnostics[0].code == "MC0110"


def test_windows_line_ends() -> None:
    text = TEXTS[0]
    assert parse(Source.of_text(text.replace("\n", "\r\n"))) == parse(Source.of_text(text))
