"""A policy text as an editor has it: what could be read of it, what is wrong with it, and the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source, Span
from mccompile.language import ast
from mccompile.language.extend import Merged, chain, merge
from mccompile.language.load import LARGEST, find_base, load_policy
from mccompile.language.nodes import declarable
from mccompile.language.parse import parse


@dataclass(frozen=True, slots=True)
class Document:
    """parsed: None where the text is no policy. merged: with the bases, None where they cannot be found.

    policy: None where something is wrong. problems: all that is wrong, in order of place.
    """

    source: Source
    parsed: ast.PolicyAst | None
    merged: Merged | None
    policy: ir.PolicyIR | None
    problems: tuple[Diagnostic, ...]


def read(text: str, name: str, path: Path | None) -> Document:
    """What is known of a text. path: where it lies, so that `extends` finds the files beside it."""
    source = Source(name, text.replace("\r\n", "\n"), path)
    if len(text) > LARGEST:
        return Document(source, None, None, None, ())
    try:
        parsed = parse(source)
    except PolicyError as error:
        return Document(source, None, None, None, error.diagnostics)
    merged = None
    try:
        merged = merge(chain(parsed, find_base), [])
        return Document(source, parsed, merged, load_policy(source), ())
    except PolicyError as error:
        return Document(source, parsed, merged, None, error.diagnostics)


@dataclass(frozen=True, slots=True)
class Mention:
    """A name of a parameter, signal, function, phase or choice at one place. declares: it is its declaration."""

    name: str
    span: Span
    declares: bool
    phase: bool


def mentions(parsed: ast.PolicyAst) -> Iterator[Mention]:
    """Every place of the names that a policy can declare, in no order."""
    yield from _mentions(list(parsed.items))


def _mentions(below: list[object]) -> Iterator[Mention]:
    """Those in nodes of a policy, and below them."""
    while below:
        node = below.pop()
        match node:
            case ast.ParamDecl(name=name) | ast.SignalDecl(name=name) | ast.ChooseDecl(name=name):
                yield Mention(name.text, name.span, declares=True, phase=False)
            case ast.FunctionDecl(name=name, parameters=parameters, expr=expr):
                yield Mention(name.text, name.span, declares=True, phase=False)
                own = {one.name.text for one in parameters}  # these are names within the function alone
                inner = _mentions([expr, *(one.default for one in parameters)])
                yield from (mention for mention in inner if mention.name not in own)
                continue
            case ast.Call(function=name):
                yield Mention(name.text, name.span, declares=False, phase=False)
            case ast.PhaseDecl(name=name):
                yield Mention(name.text, name.span, declares=True, phase=True)
            case ast.Ref(name=text, span=span):
                yield Mention(text, span, declares=False, phase=False)
            case ast.ReuseRule(granularity=word):
                yield Mention(word.text, word.span, declares=False, phase=False)
            case _:
                pass
        below += declarable(node)


def word_at(source: Source, offset: int) -> Span | None:
    """The word that an offset lies in or just behind."""
    text = source.text

    def within(at: int) -> bool:
        return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")

    start = offset
    while within(start - 1):
        start -= 1
    end = offset
    while within(end):
        end += 1
    return source.span(start, end) if start < end else None


def declaration(document: Document, name: str) -> Span | None:
    """Where a parameter, signal, function, phase or choice of this name is declared: here, in a base or a library."""
    if document.parsed is not None:
        own = next((m.span for m in mentions(document.parsed) if m.declares and m.name == name), None)
        if own is not None:
            return own
    merged = document.merged
    if merged is None:
        return None
    tables = (merged.params, merged.signals, merged.phases, merged.functions)
    return next((table[name].name.span for table in tables if name in table), None)


def places_of(document: Document, at: Span) -> tuple[Span, ...]:
    """Every place in this text of the name at a place; empty where it is none that this text declares."""
    if document.parsed is None:
        return ()
    found = list(mentions(document.parsed))
    here = next((m for m in found if m.span.start == at.start), None)
    if here is None:
        return ()
    alike = [m for m in found if m.name == here.name and m.phase == here.phase]
    return tuple(sorted((m.span for m in alike), key=lambda s: s.start)) if any(m.declares for m in alike) else ()
