"""Functions that policies define: each call becomes the function's expression with the arguments in it.

before: function gate(x, limit = 0.1) = max(x - limit, 0)        signal a = rel_l1(latent) | gate()
after:  signal a = max(rel_l1(latent) - 0.1, 0)

It happens in the syntax tree, before anything is checked. So a function may be of tensors, numbers, conditions, lists
or words of options, and the checker sees what a user could have written out. A function knows its parameters, the
sources and the clock values; of the policy's parameters and signals it knows none: it means the same in every policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from mccompile.diagnostics.diagnostic import Diagnostic, Help, Label
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.arguments import as_call
from mccompile.language.builtins import CLOCKS, DEPTH, FREQUENCY, FUNCTIONS, RESERVED, SOURCES
from mccompile.language.errors import calling, names, values
from mccompile.language.expressions import TOLD
from mccompile.language.libraries import is_library
from mccompile.language.nodes import below, declarable, names_in, rebuilt
from mccompile.language.parameters import check_name
from mccompile.language.parse import keywords
from mccompile.language.spell import signature

MOST_NODES = 20_000
"""Of the expressions that the calls of one policy become: functions of functions can double at each level."""

_WORDS = frozenset(word for f in FUNCTIONS.values() for p in f.parameters for word in (*p.words, p.default or ""))
_KNOWN = frozenset({*SOURCES, *CLOCKS, FREQUENCY, DEPTH, "yes", "no", "residual", "output", "gap"}) | _WORDS


@dataclass(slots=True)
class Functions:
    """The functions of a policy with its bases and libraries.

    called: the place of the call by that of each function that was called, of the first call that no function makes.
    """

    known: Mapping[str, ast.FunctionDecl]
    errors: list[Diagnostic]
    called: dict[Span, Span] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _nodes: int = 0
    _outside: Span | None = None  # the call that is being replaced

    @classmethod
    def of(cls, policies: list[ast.PolicyAst], errors: list[Diagnostic]) -> Functions:
        """Those of sound ones (see `check_functions`). errors: takes what is wrong with calls."""
        return cls(_declared(policies), errors)

    def expanded(self, policy: ast.PolicyAst) -> ast.PolicyAst:
        """The policy without functions: what they stand for is in the place of their calls."""
        if not self.known:
            return policy
        items = tuple(item if isinstance(item, ast.FunctionDecl) else self._in(item, {}) for item in policy.items)
        return dataclasses.replace(policy, items=cast("tuple[ast.Item, ...]", items))

    def report_unused(self, policy: ast.PolicyAst) -> None:
        """Reports the functions that the policy's own file defines and nothing calls."""
        for item in () if is_library(policy) else policy.items:
            if isinstance(item, ast.FunctionDecl) and item.name.text not in self._used:
                own = tuple(name for name, f in self.known.items() if f.span.source != policy.span.source)
                self.errors.append(values.Unused(item.name.span, "function", item.name.text, own))

    # ---- replacing calls ----
    def _in(self, node: object, given: Mapping[str, ast.WrittenExpr]) -> object:
        """The node with calls replaced. given: what stands for the parameters of the function that the node is of."""
        if isinstance(node, ast.Ref) and node.name in given:
            self._count(_size(given[node.name]))
            return given[node.name]
        if isinstance(node, ast.Call | ast.Pipe):
            found = as_call(node)
            assert found is not None
            call, piped = found
            function = self.known.get(call.function.text)
            if function is not None and call.function.text not in FUNCTIONS:
                return self._call(function, call, piped, node, given)
        return rebuilt(node, lambda one: self._in(one, given))

    def _call(
        self, function: ast.FunctionDecl, call: ast.Call, piped: ast.WrittenExpr | None,
        node: ast.Call | ast.Pipe, given: Mapping[str, ast.WrittenExpr],
    ) -> object:
        """What a call stands for; a name without letters where there are too many of them."""  # fmt: skip
        outermost = self._outside is None
        if outermost:
            self._outside = node.span
        assert self._outside is not None
        self._used.add(function.name.text)
        self.called.setdefault(function.expr.span, self._outside)
        arguments = {name: self._in(value, given) for name, value in _bound(function, call, piped, self.errors).items()}
        self._count(_size(function.expr))
        made: object = ast.Ref(TOLD, node.span)
        if self._nodes <= MOST_NODES:
            made = self._in(function.expr, cast("Mapping[str, ast.WrittenExpr]", arguments))
        if outermost:
            self._outside = None
        return made

    def _count(self, nodes: int) -> None:
        if self._nodes <= MOST_NODES < self._nodes + nodes:
            assert self._outside is not None
            self.errors.append(calling.TooManyCalls(self._outside, MOST_NODES))
        self._nodes += nodes


def _bound(
    function: ast.FunctionDecl, call: ast.Call, piped: ast.WrittenExpr | None, errors: list[Diagnostic]
) -> dict[str, ast.WrittenExpr]:
    """Which argument goes to which parameter, with the defaults; reports what is wrong with the call."""
    known = tuple(one.name.text for one in function.parameters)
    name, form = function.name.text, signature(function)
    placed = [argument.value for argument in call.arguments if argument.name is None]
    placed = placed if piped is None else [piped, *placed]
    errors += [names.TooManyArguments(value.span, name, form) for value in placed[len(known) :]]
    found = dict(zip(known[: len(placed)], placed[: len(known)], strict=True))
    for argument in call.arguments:
        if argument.name is None:
            continue
        word = argument.name
        if word.text not in known:
            errors.append(names.UnknownOption(word.span, word.text, name, known))
        elif word.text in found:
            errors.append(names.DefinedTwice(word.span, "argument", word.text, found[word.text].span))
        else:
            found[word.text] = argument.value
    for one in function.parameters:
        if one.name.text not in found and one.default is None:
            errors.append(names.MissingArgument(call.span, name, one.name.text, form))
        missing = one.default or ast.Ref(TOLD, call.span)
        found.setdefault(one.name.text, missing)
    return found


# ---- functions by themselves ----
def _declared(policies: list[ast.PolicyAst]) -> dict[str, ast.FunctionDecl]:
    """The functions of policies by name, the later ones in the place of the earlier."""
    items = [item for policy in policies for item in policy.items if isinstance(item, ast.FunctionDecl)]
    return {item.name.text: item for item in items}


def check_functions(policies: list[ast.PolicyAst], choices: frozenset[str], errors: list[Diagnostic]) -> None:
    """Reports what is wrong with functions, whoever calls them. choices: names that stand for others."""
    known = _declared(policies)
    for function in known.values():
        check_name(function.name, "function", RESERVED | keywords(), errors)
        errors += _wrong(function, choices)
    cycle = next((cycle for cycle in (_cycle(name, known) for name in known) if cycle), None)
    if cycle is not None:
        first = known[cycle[0]]
        errors.append(calling.RecursiveFunction(first.name.span, first.name.text, cycle))


def _wrong(function: ast.FunctionDecl, choices: frozenset[str]) -> Iterator[Diagnostic]:
    seen: dict[str, ast.Name] = {}
    for one in function.parameters:
        first = seen.setdefault(one.name.text, one.name)
        if first is not one.name:
            yield names.DefinedTwice(one.name.span, "parameter", one.name.text, first.span)
        yield from _reserved(one.name)
        if one.default is not None:
            yield from (_unknown(ref, function, ()) for ref in _free(one.default, choices))
    read = set(names_in(function.expr))
    for name in seen.values():
        if name.text not in read:
            yield calling.UnreadParameter(name.span, name.text, function.name.text)
    yield from (_unknown(ref, function, tuple(seen)) for ref in _free(function.expr, choices | set(seen)))


def _reserved(name: ast.Name) -> Iterator[Diagnostic]:
    found: list[Diagnostic] = []
    check_name(name, "parameter", RESERVED | keywords(), found)
    yield from found


def _unknown(ref: ast.Ref, function: ast.FunctionDecl, known: tuple[str, ...]) -> Diagnostic:
    return calling.NotAParameter(ref.span, ref.name, function.name.text, known)


def _free(node: object, parameters: frozenset[str]) -> Iterator[ast.Ref]:
    """The names in an expression that nothing gives a meaning: neither parameters nor words of the language."""
    if isinstance(node, ast.Ref) and node.name not in parameters | _KNOWN:
        yield node
    for one in declarable(node):
        yield from _free(one, parameters)


def _cycle(name: str, known: Mapping[str, ast.FunctionDecl]) -> tuple[str, ...]:
    """How a function leads back to itself: the names from one to the next; () where it does not."""
    paths: list[tuple[str, ...]] = [(name,)]
    seen: set[str] = set()
    while paths:
        path = paths.pop(0)
        for called in _calls(known[path[-1]].expr):
            if called == name:
                return (*path, name)
            if called in known and called not in seen:
                seen.add(called)
                paths.append((*path, called))
    return ()


def _calls(node: object) -> Iterator[str]:
    """The names of the functions that an expression calls."""
    return (one.function.text for one in below(node) if isinstance(one, ast.Call))


def _size(node: object) -> int:
    """How many nodes an expression has."""
    return sum(1 for _ in below(node))


# ---- errors within functions ----
@dataclass(frozen=True, slots=True)
class InCall(Diagnostic):
    """An error in the expression of a function, with the call that it arises from."""

    code: str  # type: ignore[misc]  # that of the error
    of: Diagnostic
    call: Span

    def message(self) -> str:
        return self.of.message()

    def span_label(self) -> str:
        return self.of.span_label()

    def secondary(self) -> tuple[Label, ...]:
        return (*self.of.secondary(), Label(self.call, "called here"))

    def elsewhere(self) -> str:
        return self.of.elsewhere()

    def notes(self) -> tuple[str, ...]:
        return self.of.notes()

    def helps(self) -> tuple[Help, ...]:
        return self.of.helps()


def in_call(error: Diagnostic, called: Mapping[Span, Span]) -> Diagnostic:
    """The error, with the call of the function in whose expression it lies. called: as in `Functions`."""
    at = error.span
    if at is None or isinstance(error, calling.NotAParameter):
        return error
    for body, call in called.items():
        if at.source == body.source and body.start <= at.start and at.end <= body.end:
            return InCall(code=error.code, span=at, of=error, call=call)
    return error
