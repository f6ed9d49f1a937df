"""A Pygments lexer of policies: for documentation, notebooks and terminals."""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, bygroups, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from mccompile.language.builtins import CLOCKS, DEPTH, FUNCTIONS, SOURCES
from mccompile.language.parse import keywords

DECLARATIONS = (
    "policy", "use", "param", "function", "signal", "choose", "phase", "layers", "integration", "chunks", "cache",
    "branches",
)  # fmt: skip


class PolicyLexer(RegexLexer):
    """Words of the grammar, functions, sources and clock values each have a token type of their own."""

    name = "mccompile policy"
    aliases: ClassVar = ["policy"]
    filenames: ClassVar = ["*.policy"]

    tokens: ClassVar = {
        "root": [
            (r"\s+", Text),
            (r"#[^\n]*", Comment.Single),
            (r'"[^"\n]*"', String),
            (r"\d+(\.\d+)?([eE][+-]?\d+)?\s?([kKMGT]i?)?B\b", Number),
            (r"\d+(\.\d+)?([eE][+-]?\d+)?%?", Number),
            (r"(policy)(\s+)([A-Za-z_]\w*)", bygroups(Keyword.Declaration, Text, Name.Class)),
            (words(DECLARATIONS, suffix=r"\b"), Keyword.Declaration),
            (words(sorted(FUNCTIONS), suffix=r"\b(?=\s*\()"), Name.Function),
            (words(sorted(keywords()), suffix=r"\b"), Keyword),
            (words(sorted(SOURCES), suffix=r"\b"), Name.Builtin),
            (words(sorted((*CLOCKS, DEPTH)), suffix=r"\b"), Name.Variable.Magic),
            (r"[A-Za-z_]\w*", Name),
            (r"<=|>=|\.\.|[-+*/^|<>=]", Operator),
            (r"[{}()\[\],:]", Punctuation),
            (r".", Text),
        ],
    }
