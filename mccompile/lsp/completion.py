"""What may stand at a place of a policy that is being written: also where the text is not yet a policy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mccompile.language import ast
from mccompile.language.builtins import CLOCKS, DEPTH, FUNCTIONS, SOURCES
from mccompile.language.coefficients import coefficient_sets
from mccompile.language.spell import signature, spell
from mccompile.lsp.document import Document
from mccompile.resources import shipped_policies

CandidateKind = Literal[
    "keyword", "function", "source", "clock", "parameter", "signal", "option", "word", "set", "policy",
]  # fmt: skip
_OPTIONS = {
    "chunks": {"frames": ("model",), "pending": ("skip", "compute"), "finished": ("refresh", "keep", "compute")},
    "cache": {
        "dtype": ("auto", "model", "float32", "bfloat16", "float16", "float8"),
        "residual": ("auto", "model", "float32", "bfloat16", "float16", "float8"),
        "device": ("auto", "model", "cpu"), "budget": ("none",), "refresh_every": ("never",),
        "refresh_last": ("no", "yes"), "window": ("5 chunks", "none"), "sink": ("1 chunks", "none"),
        "keys": ("top 3 chunks by relevance", "none"),
    },
}  # fmt: skip
_DECLARATIONS = (
    "use", "param", "function", "signal", "choose", "phase", "layers", "integration", "chunks", "cache", "branches",
)  # fmt: skip
_RULES = (
    "compute", "compute every", "compute steps", "compute top", "reuse step while", "reuse chunk while",
    "reuse frame while", "reuse token while", "reuse chunk as", "reuse token as", "vote", "hold when selected",
    "compute all when selected", "compute all every", "compute all steps", "at most",
    "uncond: ", "cond: ",
)  # fmt: skip
_KEPT = ("compute", "keep residual", "keep output", "keep gap", "reuse as")
SUBLAYERS = {
    "attn": "self-attention: video tokens are among the keys",
    "cross": "attention to other values alone, such as the text",
    "ffn": "the feed-forward part: nothing attends",
}
_OPENED = re.compile(r"\b(phase|layers|integration|chunks|cache|branches|policy)\b[^{}]*\{[^{}]*$")
_CALLED = re.compile(r"([a-z_][a-z_0-9]*)\s*\([^()]*$")
_NAMED = re.compile(r"([a-z_]+)\s*=\s*[a-z_]*$")
_DECLARED = re.compile(r"\b(param|signal|function)\s+([A-Za-z_]\w*)")
_DEFINED = re.compile(r"\b(?:signal\s+\w+|function\s+\w+\s*\([^()]*\))\s*=[^{}]*$")
_WHAT: Mapping[str, CandidateKind] = {"param": "parameter", "signal": "signal", "function": "function"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that may stand there, what it is, and a line about it."""

    text: str
    kind: CandidateKind
    says: str


def complete(document: Document, offset: int) -> tuple[Candidate, ...]:
    """The candidates at an offset, those that fit the place only."""
    before = document.source.text[:offset]
    line = before[before.rfind("\n") + 1 :]
    if line.count('"') % 2:
        return tuple(Candidate(name, "set", found.source) for (_, name), found in sorted(coefficient_sets().items()))
    if re.search(r"\bextends\s+\w*$", line):
        return tuple(Candidate(name, "policy", "a shipped policy") for name in shipped_policies())
    opened = _OPENED.search(before)
    section = opened[1] if opened is not None else ""
    if section in _OPTIONS:
        return tuple(_option(section, line))
    called = _CALLED.search(line)
    if called is not None and called[1] in FUNCTIONS:
        return (*_arguments(called[1], line), *_values(document))
    if called is not None and document.merged is not None and called[1] in document.merged.functions:
        return (*_own_arguments(document.merged.functions[called[1]]), *_values(document))
    if _DEFINED.search(line) or (section == "phase" and _in_expression(line)):
        return tuple(_values(document))
    if section == "phase":
        return tuple(Candidate(text, "keyword", "") for text in _RULES)
    if re.search(r"\blayers\s+(\w+\s*=\s*)?\w*$", line):
        return tuple(Candidate(text, "keyword", "") for text in ("blocks[*]", "each blocks[*]", "model"))
    if re.search(r"\blayers\b[^{}]*\]\.\w*$", line):
        return tuple(Candidate(part, "word", says) for part, says in SUBLAYERS.items())
    if section in ("layers", "integration"):
        return tuple(Candidate(text, "keyword", "") for text in _KEPT)
    if section == "policy" or before.count("{") > before.count("}"):
        return tuple(Candidate(text, "keyword", "") for text in _DECLARATIONS)
    return (Candidate("policy", "keyword", "begins a policy"),)


def _in_expression(line: str) -> bool:
    return re.search(r"\b(while|by|vote|and|or|not)\b[^{}]*$|[<>=+\-*/|(]\s*\w*$", line) is not None


def _option(section: str, line: str) -> Iterator[Candidate]:
    asked = re.search(r"([a-z_]+):\s*\w*$", line)
    options = _OPTIONS[section]
    if asked is not None and asked[1] in options:
        yield from (Candidate(word, "word", f"of `{asked[1]}`") for word in options[asked[1]])
    else:
        yield from (Candidate(f"{name}: ", "option", ", ".join(words)) for name, words in options.items())


def _arguments(function: str, line: str) -> Iterator[Candidate]:
    """The options of a function; the words of one whose name stands before the sign."""
    named = _NAMED.search(line)
    for parameter in FUNCTIONS[function].parameters:
        if named is not None and parameter.name == named[1]:
            yield from (Candidate(word, "word", f"of `{parameter.name}`") for word in parameter.words)
        elif named is None and parameter.default is not None:
            yield Candidate(f"{parameter.name} = ", "option", f"default: {parameter.default}")


def _own_arguments(function: ast.FunctionDecl) -> Iterator[Candidate]:
    """The parameters of a policy's own function that have a default."""
    for one in function.parameters:
        if one.default is not None:
            yield Candidate(f"{one.name.text} = ", "option", f"default: {spell(one.default)}")


def _signature(document: Document, name: str) -> str:
    """That of a function of the policy's own or of a library; "" for any other name."""
    function = document.merged.functions.get(name) if document.merged is not None else None
    return "" if function is None else signature(function)


def _values(document: Document) -> Iterator[Candidate]:
    """Everything that an expression can begin with. Names are found in a text that is no policy yet, too."""
    own = {name: what for what, name in _DECLARED.findall(document.source.text)}
    if document.merged is not None:
        merged = document.merged
        of_bases = dict.fromkeys(merged.functions, "function")
        own = dict.fromkeys(merged.params, "param") | dict.fromkeys(merged.signals, "signal") | of_bases | own
    for name, what in own.items():
        yield Candidate(name, _WHAT[what], _signature(document, name))
    yield from (Candidate(name, "function", f.signature()) for name, f in FUNCTIONS.items())
    yield from (Candidate(name, "source", "a tensor of the model") for name in SOURCES)
    yield from (Candidate(name, "clock", "a clock value") for name in CLOCKS)
    yield Candidate(DEPTH, "clock", "where the block that decides stands")
