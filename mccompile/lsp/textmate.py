"""The TextMate grammar of policies, made of the words that the language has; docs/editors has it as a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from mccompile.language.builtins import CLOCKS, DEPTH, FUNCTIONS, SOURCES
from mccompile.language.parse import keywords
from mccompile.lsp.lexer import DECLARATIONS

SCOPE = "source.policy"


def textmate_grammar() -> str:
    """The grammar as JSON."""
    patterns = [
        ("comment.line.number-sign.policy", r"#.*$"),
        ("string.quoted.double.policy", r'"[^"\n]*"'),
        ("constant.numeric.policy", r"\b\d+(\.\d+)?([eE][+-]?\d+)?(%|\s?([kKMGT]i?)?B\b)?"),
        ("keyword.declaration.policy", _any(DECLARATIONS)),
        ("entity.name.function.policy", _any(FUNCTIONS) + r"(?=\s*\()"),
        ("keyword.control.policy", _any(keywords() - set(DECLARATIONS))),
        ("support.variable.policy", _any(SOURCES)),
        ("variable.language.policy", _any((*CLOCKS, DEPTH))),
        ("keyword.operator.policy", r"<=|>=|\.\.|[-+*/^|<>=]"),
    ]
    grammar = {
        "name": "policy",
        "scopeName": SCOPE,
        "fileTypes": ["policy"],
        "patterns": [{"name": name, "match": match} for name, match in patterns],
    }
    return json.dumps(grammar, indent=2) + "\n"


def _any(names: Iterable[str]) -> str:
    return rf"\b({'|'.join(map(re.escape, sorted(names)))})\b"
