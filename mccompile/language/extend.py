"""`extends`: the chain of policies and their merger into one set of declarations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.errors import layers, names
from mccompile.language.errors.syntax import TooDeep
from mccompile.language.libraries import Loader, with_libraries
from mccompile.language.parse import parse


@dataclass(slots=True)
class Merged:
    """The declarations of a policy and its bases; `own` holds the names that the policy itself declares."""

    policy: ast.PolicyAst
    models: tuple[ast.Name, ...] = ()
    params: dict[str, ast.ParamDecl] = field(default_factory=dict)
    signals: dict[str, ast.SignalDecl] = field(default_factory=dict)
    phases: dict[str, ast.PhaseDecl] = field(default_factory=dict)
    layers: list[ast.LayersDecl] = field(default_factory=list)
    chunks: dict[str, ast.Option] = field(default_factory=dict)
    cache: dict[str, ast.Option] = field(default_factory=dict)
    branches: ast.BranchesDecl | None = None
    functions: dict[str, ast.FunctionDecl] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)


LONGEST_CHAIN = 16
"""The most policies that extend each other in a row."""


def chain(policy: ast.PolicyAst, loader: Loader) -> list[ast.PolicyAst]:
    """The policy and its bases, the base of all first.

    The functions of the libraries that each uses stand among its own. Raises `PolicyError` for a base that is missing
    or refused, a circle (MC0250), a chain without end (MC0110), and a library that is none (MC0286).
    """
    found = [policy]
    while (extends := found[-1].extends) is not None:
        source = loader(extends)
        first = next((i for i, seen in enumerate(found) if _same(source, seen.span.source)), None)
        if first is not None:
            circle = (*(seen.name.text for seen in found[first:]), found[first].name.text)
            raise PolicyError([layers.ExtendsCycle(extends.span, circle[0], circle)])
        if len(found) == LONGEST_CHAIN:
            raise PolicyError([TooDeep(extends.span, LONGEST_CHAIN, "policies that extend each other")])
        found.append(parse(source))
    return [with_libraries(each, loader) for each in found[::-1]]


def _same(a: Source, b: Source) -> bool:
    return a.path == b.path if a.path and b.path else a == b


def merge(policies: list[ast.PolicyAst], errors: list[Diagnostic]) -> Merged:
    """One set of declarations: of two with one name the later policy's stands, in the place of the earlier's."""
    merged = Merged(policies[-1])
    for policy in policies:
        _report_twice(policy, errors)
        merged.models = policy.models or merged.models
        stated_layers = [item for item in policy.items if isinstance(item, ast.LayersDecl)]
        merged.layers = stated_layers or merged.layers
        for item in policy.items:
            if not _changes_kind(merged, item, errors):
                _add(merged, item)
    merged.own = {item.name.text for item in policies[-1].items if isinstance(item, _NAMED)}
    return merged


def _changes_kind(merged: Merged, item: ast.Item, errors: list[Diagnostic]) -> bool:
    """Reports a parameter of the base that becomes a signal, or the other way round: its rules count on its kind."""
    before: ast.ParamDecl | ast.SignalDecl | None
    match item:
        case ast.SignalDecl(name=name):
            what, was, before = "signal", "parameter", merged.params.get(name.text)
        case ast.ParamDecl(name=name):
            what, was, before = "parameter", "signal", merged.signals.get(name.text)
        case _:
            return False
    if before is None or before.span.source == item.span.source:
        return False
    errors.append(layers.KindChanged(name.span, name.text, what, was, before.name.span))
    return True


_NAMED = ast.ParamDecl | ast.SignalDecl | ast.PhaseDecl


def _add(merged: Merged, item: ast.Item) -> None:
    match item:
        case ast.ParamDecl(name=name):
            base = merged.params.get(name.text)
            merged.params[name.text] = item if base is None else _overridden(base, item)
        case ast.SignalDecl(name=name):
            merged.signals[name.text] = item
        case ast.PhaseDecl(name=name):
            merged.phases[name.text] = item
        case ast.OptionsDecl(section=section, options=options):
            table = merged.chunks if section == "chunks" else merged.cache
            table.update({option.name.text: option for option in options})
        case ast.BranchesDecl():
            merged.branches = item
        case ast.FunctionDecl(name=name):
            merged.functions[name.text] = item
        case ast.LayersDecl() | ast.ChooseDecl() | ast.UseDecl():
            return


def _overridden(base: ast.ParamDecl, item: ast.ParamDecl) -> ast.ParamDecl:
    """A new default under the range and the unit of the base, unless it states its own."""
    if item.range is not None:
        return item
    default = item.default
    if not default.unit and base.default.unit in ("steps", "frames"):
        default = dataclasses.replace(default, unit=base.default.unit)
    return dataclasses.replace(item, default=default, range=base.range)


def _report_twice(policy: ast.PolicyAst, errors: list[Diagnostic]) -> None:
    """Names that one policy gives twice: parameters and signals share theirs."""
    seen: dict[tuple[str, str], ast.Name] = {}
    for what, name in _named(policy):
        scope = "value" if what in ("parameter", "signal", "function") else what
        first = seen.setdefault((scope, name.text), name)
        if first is not name:
            errors.append(names.DefinedTwice(name.span, what, name.text, first.span))


def _named(policy: ast.PolicyAst) -> list[tuple[str, ast.Name]]:
    found: list[tuple[str, ast.Name]] = []
    for item in policy.items:
        match item:
            case ast.ParamDecl(name=name):
                found.append(("parameter", name))
            case ast.SignalDecl(name=name):
                found.append(("signal", name))
            case ast.PhaseDecl(name=name):
                found.append(("phase", name))
            case ast.OptionsDecl(section=section, options=options):
                found.append(("section", ast.Name(section, item.span)))
                found += [(f"`{section}` option", option.name) for option in options]
            case ast.BranchesDecl():
                found.append(("section", ast.Name("branches", item.span)))
            case ast.FunctionDecl(name=name):
                found.append(("function", name))
            case ast.LayersDecl() | ast.ChooseDecl() | ast.UseDecl():
                continue
    return found
