"""docs/language.md: its policies are clean and formatted, and no word of the language is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mccompile.diagnostics.source import Source
from mccompile.language.builtins import CLOCKS, FUNCTIONS, SOURCES
from mccompile.language.fmt import format_policy
from mccompile.language.load import load_policy
from mccompile.language.options import OPTION_WORDS
from mccompile.language.parse import keywords, parse

TEXT = (Path(__file__).parent.parent.parent / "docs" / "language.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```policy\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split()[1])
def test_examples_are_clean_and_formatted(text: str) -> None:
    source = Source.of_text(text)
    load_policy(source)
    assert format_policy(parse(source)) == text


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_every_word_is_there() -> None:
    words = set(re.findall(r"[a-z_0-9]+", TEXT))
    assert keywords() | set(SOURCES) | set(CLOCKS) | set(FUNCTIONS) <= words | {"refresh"}
    for (_, option), choices in OPTION_WORDS.items():
        assert f"{option}: ..." in TEXT
        assert set(choices) <= words


def test_signatures_and_defaults_are_those_of_the_functions() -> None:
    for function in FUNCTIONS.values():
        assert function.signature() in TEXT
