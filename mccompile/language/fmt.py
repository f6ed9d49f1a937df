"""`format_policy`: the one layout of a policy. It is idempotent, and it keeps all comments and spellings of numbers.

Declarations of one kind stand together, with `=` and `{` aligned. An empty line separates them from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, assert_never

from mccompile.language import ast
from mccompile.language.spell import (
    guard,
    layer_rule,
    option,
    quantity,
    rule,
    signature,
    spell,
    when,
    where,
    whose,
)

INDENT = "  "
_Kind = Literal["use", "param", "function", "signal", "choose", "phase", "place"]


@dataclass(slots=True)
class _Line:
    """A line of the result and the offset in the source where what it says begins."""

    text: str
    start: int
    remark: str = ""
    indent: str = INDENT  # of a comment that stands before it


def format_policy(policy: ast.PolicyAst) -> str:
    """The policy in its one layout, ending in a line end."""
    body: list[_Line] = []
    for _, group in groupby(policy.items, _kind):
        if body:
            body.append(_Line("", -1))
        body += _group(list(group), INDENT)
    head = _Line(_head(policy), policy.span.start)
    if not policy.items and not policy.comments:
        return f"{head.text} {{ }}\n"
    lines = [_Line(f"{head.text} {{", head.start), *body, _Line("}", policy.span.end - 1)]
    return "".join(f"{_with_remark(line)}\n" for line in _commented(lines, policy))


def _head(policy: ast.PolicyAst) -> str:
    words = ["policy", policy.name.text]
    if policy.extends is not None:
        base = policy.extends.base
        words += ["extends", base.text if isinstance(base, ast.Name) else f'"{base.value}"']
    if policy.models:
        words += ["for", ", ".join(name.text for name in policy.models)]
    return " ".join(words)


def _kind(item: ast.Item) -> _Kind:
    match item:
        case ast.ParamDecl():
            return "param"
        case ast.SignalDecl():
            return "signal"
        case ast.ChooseDecl():
            return "choose"
        case ast.UseDecl():
            return "use"
        case ast.FunctionDecl():
            return "function"
        case ast.PhaseDecl():
            return "phase"
        case ast.LayersDecl() | ast.OptionsDecl() | ast.BranchesDecl():
            return "place"
        case _:
            assert_never(item)


def _group(items: Sequence[ast.Item], indent: str) -> list[_Line]:
    """The lines of neighbouring items of one kind: heads padded to one width."""
    named = max((len(item.name.text) for item in items if isinstance(item, ast.LayersDecl) and item.name), default=0)
    heads = [_item_head(item, named) for item in items]
    width = 0 if _kind(items[0]) == "place" else max(map(len, heads))
    lines: list[_Line] = []
    for item, head in zip(items, heads, strict=True):
        lines += _item(item, indent + head.ljust(width))
    return lines


def _choose(item: ast.ChooseDecl, head: str) -> list[_Line]:
    """One line for alternatives that are words alone; the declarations of the others stand below them."""
    lines = [_Line(f"{head} =", item.span.start)]
    for n, alternative in enumerate(item.alternatives):
        sign = " |" if n else ""
        if lines[-1].text.strip() == "}":
            lines[-1].start = alternative.span.start
        lines[-1].text += f"{sign} {alternative.name.text}"
        if alternative.declarations:
            lines[-1].text += " {"
            inner: list[_Line] = []
            for _, group in groupby(alternative.declarations, _kind):
                inner += _group(list(group), 2 * INDENT)
            for line in inner:
                line.indent = 2 * INDENT
            lines += [*inner, _Line(f"{INDENT}}}", alternative.span.end - 1, indent=2 * INDENT)]
    return lines


def _item_head(item: ast.Item, named: int) -> str:
    """named: the length of the longest name of the layers beside it."""
    match item:
        case ast.ParamDecl(name=name):
            return f"param {name.text}"
        case ast.SignalDecl(name=name):
            return f"signal {name.text}"
        case ast.ChooseDecl(name=name):
            return f"choose {name.text}"
        case ast.UseDecl(library=library):
            return f"use {spell(library)}"
        case ast.FunctionDecl():
            return f"function {signature(item)}"
        case ast.PhaseDecl(name=name):
            return f"phase {name.text}" + ("" if item.when is None else f" {when(item.when)}")
        case ast.LayersDecl():
            return _layers_head(item, named)
        case ast.OptionsDecl(section=section):
            return section
        case ast.BranchesDecl():
            return "branches"
        case _:
            assert_never(item)


def _layers_head(item: ast.LayersDecl, named: int) -> str:
    if item.where is None:
        return "integration"
    name = "" if item.name is None else f"{item.name.text.ljust(named)} = "
    name += "each " if item.each else ""
    if isinstance(item.where, ast.ModelRange):
        return f"layers {name}model"
    part = None if item.where.part is None else item.where.part.text
    return f"layers {name}{where(item.where.first, item.where.last, part)}"


def _item(item: ast.Item, head: str) -> list[_Line]:
    start = item.span.start
    match item:
        case ast.ParamDecl(default=default, range=range_):
            ends = "" if range_ is None else f" in {quantity(range_.low)}..{quantity(range_.high)}"
            return [_Line(f"{head} = {quantity(default)}{ends}", start)]
        case ast.UseDecl():
            return [_Line(head.rstrip(), start)]
        case ast.SignalDecl(expr=expr) | ast.FunctionDecl(expr=expr):
            return [_Line(f"{head} = {spell(expr)}", start)]
        case ast.ChooseDecl():
            return _choose(item, head)
        case ast.PhaseDecl():
            return _phase(item, head)
        case ast.LayersDecl(keep=keep, stand_in=stand_in):
            return [_Line(f"{head} {{ {layer_rule(keep, stand_in)} }}", start)]
        case ast.OptionsDecl(options=options):
            inner = "  ".join(option(one) for one in options)
            return [_Line(f"{head} {{ {inner} }}" if inner else f"{head} {{ }}", start)]
        case ast.BranchesDecl(share=share, batch=batch):
            words = f"share decision of {share.text}" + ("" if batch is None else f"  {batch.text}")
            return [_Line(f"{head} {{ {words} }}", start)]
        case _:
            assert_never(item)


def _phase(item: ast.PhaseDecl, head: str) -> list[_Line]:
    """The rule behind the head. Several rules of regions stand below it, each on a line of its own."""
    if len(item.regions) > 1:
        width = max(len(whose(one)) for one in item.regions) + 1
        below = [
            line
            for one in item.regions
            for line in _rule(one.rule, f"{2 * INDENT}{f'{whose(one)}:':<{width}} ", one.span.start)
        ]
        return [_Line(f"{head} {{", item.span.start), *below, _Line(f"{INDENT}}}", item.span.end - 1)]
    one = item.regions[0] if item.regions else None
    named = "" if one is None else f"{whose(one)}: "
    lines = _rule(item.rule if one is None else one.rule, f"{head} {{ {named}", item.span.start)
    lines[-1].text += " }"
    return lines


def _rule(written: ast.WrittenRule, head: str, start: int) -> list[_Line]:
    """A rule; each guard on a line of its own, below the rule, and each further `reuse` on one below the first."""
    if isinstance(written, ast.ReuseInOrder):
        below = " " * len(head)
        return [
            line
            for n, way in enumerate(written.ways)
            for line in _rule(way, below if n else head, way.span.start if n else start)
        ]
    lines = [_Line(f"{head}{rule(written)}", start)]
    if isinstance(written, ast.ReuseRule | ast.ComputeTop):
        lines += [_Line(f"{' ' * len(head)}{guard(one)}", one.span.start) for one in written.guards]
    return lines


def _with_remark(line: _Line) -> str:
    return f"{line.text}  {line.remark}" if line.remark else line.text


def _commented(lines: list[_Line], policy: ast.PolicyAst) -> list[_Line]:
    """The lines with the comments put back, in their order.

    A comment behind code stays behind the line of that code, if it is the first there; every other one
    stands on a line of its own before the next line.
    """
    before: list[list[_Line]] = [[] for _ in range(len(lines) + 1)]
    for comment in policy.comments:
        start = comment.span.start
        below = next((i for i, line in enumerate(lines) if line.start > start), len(lines))
        above = next((line for line in reversed(lines) if 0 <= line.start < start), None)
        if comment.trailing and above is not None and not above.remark and not before[below]:
            above.remark = comment.text
        else:
            indent = lines[below].indent if 0 < below < len(lines) else ""
            before[below].append(_Line(indent + comment.text, start))
    found: list[_Line] = []
    for own_lines, line in zip(before, [*lines, None], strict=True):
        found += own_lines
        found += [] if line is None else [line]
    return found
