"""The formatter: reading back gives the same policy, twice is once, no comment is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy
from mccompile.language.parse import parse
from mccompile.resources import shipped_policies
from tests.language.strategies import policies


def formatted(text: str) -> str:
    return format_policy(parse(Source.of_text(text)))


@given(policies)
@settings(max_examples=100)
def test_any_policy_reads_back(policy: ast.PolicyAst) -> None:
    text = format_policy(policy)
    again = parse(Source.of_text(text))
    assert again == policy
    assert format_policy(again) == text


@pytest.mark.parametrize("name", shipped_policies())
def test_shipped_policies_are_formatted(name: str) -> None:
    source = find_policy(name)
    assert format_policy(parse(source)) == source.text
    code = [line for line in source.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(code) <= 20


@given(st.sampled_from(shipped_policies()), st.data())
@settings(max_examples=40)
def test_comments_survive(name: str, data: st.DataObject) -> None:
    """Comments and line ends between any two words change neither the policy nor each other's order."""
    words = re.findall(r'#[^\n]*\n|"[^"]*"|\S+', find_policy(name).text)
    words = [word for word in words if not word.startswith("#")]
    places = data.draw(st.lists(st.integers(0, len(words)), max_size=6))
    text = ""
    for i, word in enumerate([*words, ""]):
        for n in range(places.count(i)):
            text += data.draw(st.sampled_from(("", "\n"))) + f" # comment {i} {n}\n"
        text += f"{word} "
    policy = parse(Source.of_text(text))
    assert len(policy.comments) == len(places)
    again = formatted(text)
    assert parse(Source.of_text(again)) == policy
    assert formatted(again) == again


def test_one_layout() -> None:
    params, phases = "param b=1 in 0..2 param long=50%in 0%..60%", "phase a{compute}phase bb for 1 steps{compute}"
    assert formatted(f"policy p{{{params} {phases}}}") == (
        "policy p {\n"
        "  param b    = 1 in 0..2\n"
        "  param long = 50% in 0%..60%\n"
        "\n"
        "  phase a             { compute }\n"
        "  phase bb for 1 step { compute }\n"
        "}\n"
    )


def test_comments_stay_behind_their_line_or_above_the_next() -> None:
    text = "# top\npolicy p { # head\n# own\nphase x {compute} # tail\n} # end\n# last"
    assert formatted(text) == (
        "# top\npolicy p {  # head\n  # own\n  phase x { compute }  # tail\n}  # end\n# last\n"
    )


def test_no_needless_parentheses() -> None:
    text = "policy p { signal s = ((a * (b)) + (-(c) ^ (2))) / (d - (e - f)) }"
    assert "signal s = (a * b + -c ^ 2) / (d - (e - f))" in formatted(text)
