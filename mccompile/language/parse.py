"""`parse`: turns text into the AST, or reports diagnostics."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

from lark import Lark, ParseTree, Tree, UnexpectedCharacters, UnexpectedToken

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.errors.syntax import TooDeep
from mccompile.language.recover import without_declaration
from mccompile.language.syntax_errors import translate
from mccompile.language.tree import AstBuilder
from mccompile.resources import data_folder

MAX_DEPTH = 100
MOST_ERRORS = 8
"""Syntax errors that are told at once."""

_BRACKETS = re.compile(r'"[^"\n]*"|#[^\n]*|[()\[\]]')
_STRING_OR_COMMENT = re.compile(r'"[^"\n]*"|#[^\n]*')


@cache
def grammar() -> Lark:
    """The parser of `grammar/policy.lark`, built once."""
    text = (data_folder("grammar") / "policy.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", propagate_positions=True, maybe_placeholders=True)


def parse(source: Source) -> ast.PolicyAst:
    """The AST of `source`; `PolicyError` with the MC01xx diagnostics of its declarations if it is not a policy."""
    _refuse_brackets(source)
    tree = _tree(source)
    _refuse_depth(tree, source)
    builder = AstBuilder(source)
    policy = builder.transform(tree)
    if builder.errors:
        raise PolicyError(builder.errors)
    return dataclasses.replace(policy, comments=_comments(source))


def _tree(source: Source) -> ParseTree:
    """The tree of the text. Behind an error the other declarations are read, so that all errors are told at once."""
    text: str | None = source.text
    errors: list[Diagnostic] = []
    while text is not None and len(errors) < MOST_ERRORS:
        try:
            tree = grammar().parse(text)
        except (UnexpectedToken, UnexpectedCharacters) as error:
            errors.append(translate(error, source))
            open_brace = bool(errors[-1].secondary())  # then it is not certain where its declaration ends
            at = None if open_brace else errors[-1].span
            text = None if at is None else without_declaration(text, at.start)
            continue
        if not errors:
            return tree
        break
    raise PolicyError(errors)


def _refuse_brackets(source: Source) -> None:
    """Raises for brackets within brackets before they are parsed, which takes long for a hundred thousand of them."""
    depth = 0
    for match in _BRACKETS.finditer(source.text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise PolicyError([TooDeep(source.span(match.start(), match.end()), MAX_DEPTH)])


def _refuse_depth(tree: ParseTree, source: Source) -> None:
    """Raises for a text that the recursive passes behind the parser could not walk."""
    below: list[tuple[ParseTree, int]] = [(tree, 0)]
    while below:
        node, depth = below.pop()
        if depth > MAX_DEPTH:
            span = source.span(node.meta.start_pos, node.meta.end_pos)
            raise PolicyError([TooDeep(span, MAX_DEPTH)])
        below += [(child, depth + 1) for child in node.children if isinstance(child, Tree)]


def keywords() -> frozenset[str]:
    """Every word that the grammar gives a meaning; none of them can name a parameter or a signal.

    The `a` of `at most 3 in a row` stands where no name can, so it stays free.
    """
    patterns = (terminal.pattern.to_regexp() for terminal in grammar().terminals)
    written = (re.fullmatch(r"([a-z()|?]+)\\b", pattern) for pattern in patterns)
    return frozenset(word for match in written if match for word in _spellings(match[1])) - {"a"}


def _spellings(pattern: str) -> list[str]:
    """`steps?` is step, steps; `refresh(es)?` is refresh, refreshes; `(a|b)` is a, b."""
    if pattern.endswith(")?"):
        stem, tail = pattern[:-2].split("(")
        return [stem, stem + tail]
    if pattern.endswith("?"):
        return [pattern[:-2], pattern[:-1]]
    return pattern.strip("()").split("|")


def _comments(source: Source) -> tuple[ast.Comment, ...]:
    found = []
    for match in _STRING_OR_COMMENT.finditer(source.text):
        if match[0].startswith("#"):
            span = source.span(match.start(), match.end())
            before = source.line(span.line)[: span.column - 1]
            found.append(ast.Comment(match[0].rstrip(), bool(before.strip()), span))
    return tuple(found)


