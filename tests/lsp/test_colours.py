"""The Pygments lexer and the TextMate grammar know every word of the language."""

from __future__ import annotations

import json
import re

import pytest
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Error, Keyword, Name, String

from mccompile.language.builtins import CLOCKS, FUNCTIONS, SOURCES
from mccompile.language.load import find_policy
from mccompile.language.parse import keywords
from mccompile.lsp.lexer import PolicyLexer
from mccompile.lsp.textmate import textmate_grammar
from mccompile.resources import shipped_policies
from tests.house.tree import DOCS

FOLDER = DOCS / "editors" / "vscode"


@pytest.mark.parametrize("name", shipped_policies())
def test_the_lexer_reads_every_policy(name: str) -> None:
    text = find_policy(name).text
    found = list(lex(text, PolicyLexer()))
    assert "".join(word for _, word in found) == text
    assert Error not in {kind for kind, _ in found}
    assert any(kind is Comment.Single for kind, _ in found)


def test_every_word_has_a_colour() -> None:
    for word in keywords() - set(FUNCTIONS):
        (kind, text), *_ = lex(f"{word} ", PolicyLexer())
        assert (kind in Keyword, text) == (True, word)
    for word in FUNCTIONS:
        assert next(iter(lex(f"{word}(x)", PolicyLexer()))) == (Name.Function, word)
    for word in {*SOURCES, *CLOCKS} - keywords():
        assert next(iter(lex(f"{word} ", PolicyLexer())))[0] in Name
    assert next(iter(lex('"a b"', PolicyLexer()))) == (String, '"a b"')


def test_pygments_finds_the_lexer_by_its_name() -> None:
    assert isinstance(get_lexer_by_name("policy"), PolicyLexer)


def test_the_grammar_in_the_docs_is_the_one_that_is_made(update_golden: bool) -> None:
    path = FOLDER / "syntaxes" / "policy.tmLanguage.json"
    if update_golden:
        path.write_text(textmate_grammar())
    assert path.read_text() == textmate_grammar()


def test_the_grammar_matches_every_word() -> None:
    patterns = [re.compile(pattern["match"]) for pattern in json.loads(textmate_grammar())["patterns"]]
    for word in (*keywords(), *SOURCES, *CLOCKS, *(f"{name}(" for name in FUNCTIONS)):
        assert any(pattern.match(word) for pattern in patterns), word


def test_the_extension_names_files_that_are_there() -> None:
    said = json.loads((FOLDER / "package.json").read_text())
    (language,), (grammar,) = said["contributes"]["languages"], said["contributes"]["grammars"]
    for name in (said["main"], language["configuration"], grammar["path"]):
        assert (FOLDER / name).is_file()
    assert grammar["scopeName"] == json.loads(textmate_grammar())["scopeName"]
    assert said["contributes"]["configuration"]["properties"]["mccompile.command"]["default"] == ["mccompile", "lsp"]
    json.loads((FOLDER / language["configuration"]).read_text())
