"""Errors in a base that an extension causes: the caret stands at the declaration of the user that is to blame."""

from __future__ import annotations

from collections.abc import Sequence

from mccompile.diagnostics.diagnostic import Diagnostic, Label
from mccompile.diagnostics.failure import Stated
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.nodes import names_in


def in_user_file(error: Diagnostic, policies: Sequence[ast.PolicyAst]) -> Diagnostic:
    """The error at the user's own declaration that causes it, with the place in the base as a second one.

    policies: the bases first, the user's policy last. An error that no declaration of the user causes stays as it is.
    """
    span = error.span
    user = policies[-1]
    if span is None or span.source == user.span.source:
        return error
    told = next((label for label in error.secondary() if label.span.source == user.span.source), None)
    if told is None:
        blamed = _blamed(span, policies)
        if blamed is None:
            return error
        told = Label(blamed.span, f"this `{blamed.text}` takes the place of the base's")
    others = (Label(span, error.span_label()), *(label for label in error.secondary() if label != told))
    return Stated(
        code=error.code, span=told.span, stated=error.message(), marked=told.text, others=others, place="",
        causes=error.notes(), remedies=tuple(help_.text for help_ in error.helps()),
    )  # fmt: skip


def _blamed(span: Span, policies: Sequence[ast.PolicyAst]) -> ast.Name | None:
    """The user's declaration that the words at a place in a base rest on, directly or through signals."""
    own = {item.name.text: item.name for item in policies[-1].items if isinstance(item, _NAMED)}
    items = [item for policy in policies[:-1] for item in policy.items]
    signals = {item.name.text: item for item in items if isinstance(item, ast.SignalDecl)}
    holding = [i for i in items if i.span.source == span.source and i.span.start <= span.start <= i.span.end]
    below = [name for item in holding for name in names_in(item)]
    seen: set[str] = set()
    while below:
        name = below.pop(0)
        if name in own:
            return own[name]
        if name not in seen and name in signals:
            below += names_in(signals[name])
        seen.add(name)
    return None


_NAMED = ast.ParamDecl | ast.SignalDecl | ast.ChooseDecl
