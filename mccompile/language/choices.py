"""`choose`: the alternatives of a policy and its bases, and the policy that holds when each choice has one of them.

A choice is settled in the syntax tree, before anything is checked: what the picked alternative declares takes the place
of the choice, and its name stands wherever the policy says the name of the choice.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from mccompile.diagnostics.diagnostic import Diagnostic, Help, Label
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.errors import choosing, names
from mccompile.language.nodes import rebuilt

MOST_WAYS = 64
"""The most combinations of alternatives of one policy: each of them is checked."""

Picks = Mapping[str, str]
"""The name of an alternative by the name of its choice."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice as its last declaration has it. alternatives: the names; the first one holds where none is picked."""

    name: ast.Name
    alternatives: tuple[ast.Name, ...]
    span: Span

    @property
    def words(self) -> tuple[str, ...]:
        """The names of the alternatives."""
        return tuple(alternative.text for alternative in self.alternatives)


def find_choices(policies: list[ast.PolicyAst], errors: list[Diagnostic]) -> dict[str, Choice]:
    """The choices of a policy and its bases (the base of all first), in the order of the text."""
    found: dict[str, Choice] = {}
    bodies: dict[str, set[str]] = {}
    for policy in policies:
        own: dict[str, ast.Name] = {}
        for item in policy.items:
            if isinstance(item, ast.ChooseDecl):
                if own.setdefault(item.name.text, item.name) is not item.name:
                    first = own[item.name.text].span
                    errors.append(names.DefinedTwice(item.name.span, "choice", item.name.text, first))
                _report(item, found.get(item.name.text), bodies.setdefault(item.name.text, set()), errors)
                alternatives = tuple(alternative.name for alternative in item.alternatives)
                found[item.name.text] = Choice(item.name, alternatives, item.span)
                bodies[item.name.text] |= {a.name.text for a in item.alternatives if a.declarations}
    return found


def _report(item: ast.ChooseDecl, before: Choice | None, bodies: set[str], errors: list[Diagnostic]) -> None:
    """What is wrong with a declaration, alone or beside the base's. bodies: alternatives of the base that declare."""
    first: dict[str, ast.Name] = {}
    for alternative in item.alternatives:
        name = alternative.name
        if first.setdefault(name.text, name) is not name:
            errors.append(names.DefinedTwice(name.span, "alternative", name.text, first[name.text].span))
        if before is not None and bodies and not alternative.declarations and name.text not in before.words:
            errors.append(names.InvalidWord(name.span, f"choose {item.name.text}", name.text, before.words))
    if len(item.alternatives) == 1 and before is None:
        errors.append(choosing.OneAlternative(item.span, item.name.text, item.alternatives[0].name.text))


def ways(choices: Mapping[str, Choice]) -> Iterator[dict[str, str]]:
    """Every combination of alternatives, the first of each choice first."""
    for words in itertools.product(*(choice.words for choice in choices.values())):
        yield dict(zip(choices, words, strict=True))


def resolved(policy: ast.PolicyAst, picks: Picks) -> ast.PolicyAst:
    """The policy without its choices: with the picked alternatives in their places."""
    items: list[object] = []
    for item in policy.items:
        if isinstance(item, ast.ChooseDecl):
            picked = (a for a in item.alternatives if a.name.text == picks[item.name.text])
            items += [_said(one, picks) for a in picked for one in a.declarations]
        else:
            items.append(_said(item, picks))
    return dataclasses.replace(policy, items=cast("tuple[ast.Item, ...]", tuple(items)))


_OWN_NAMES = (
    ast.ParamDecl, ast.SignalDecl, ast.PhaseDecl, ast.LayersDecl, ast.Option, ast.Argument, ast.FunctionDecl,
    ast.FunctionParameter,
)  # fmt: skip
"""Nodes whose `name` is what they declare or fill, and no word that a choice may stand for."""


def _said(node: object, picks: Picks) -> object:
    """The node with the picked words in the places of their choices."""
    if isinstance(node, ast.Name):
        return dataclasses.replace(node, text=picks.get(node.text, node.text))
    if isinstance(node, ast.Ref):
        return dataclasses.replace(node, name=picks.get(node.name, node.name))
    declared = frozenset({"name"}) if isinstance(node, _OWN_NAMES) else frozenset[str]()
    return rebuilt(node, lambda one: _said(one, picks), leave=declared)


@dataclass(frozen=True, slots=True)
class InAlternative(Diagnostic):
    """An error that only some alternatives have. where: which, as `cell = chunk`."""

    code: str  # type: ignore[misc]  # that of the error
    of: Diagnostic
    where: str

    def message(self) -> str:
        return self.of.message()

    def span_label(self) -> str:
        return self.of.span_label()

    def secondary(self) -> tuple[Label, ...]:
        return self.of.secondary()

    def elsewhere(self) -> str:
        return self.of.elsewhere()

    def notes(self) -> tuple[str, ...]:
        return (*self.of.notes(), f"so it is where {self.where} is chosen")

    def helps(self) -> tuple[Help, ...]:
        return self.of.helps()


def in_alternative(error: Diagnostic, wrong: list[dict[str, str]], choices: Mapping[str, Choice]) -> Diagnostic:
    """The error with the alternatives that have it. wrong: the ways that have it, not all of them."""
    said = []
    for name, choice in choices.items():
        having = {way[name] for way in wrong}
        if len(having) == 1 < len(choice.alternatives):
            said.append(f"`{name} = {having.pop()}`")
    if not said:
        said = [f"`{name} = {word}`" for name, word in wrong[0].items()]
    return InAlternative(code=error.code, span=error.span, of=error, where=" and ".join(said))
