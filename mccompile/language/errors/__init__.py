"""One class per error code, in a module per group of codes."""

from __future__ import annotations

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language.errors import calling, choosing, layers, lists, names, phases, syntax, tensors, values


def error_classes() -> dict[str, type[Diagnostic]]:
    """Every diagnostic of the language by its code, in the order of the codes."""
    found = {
        thing.code: thing
        for module in (syntax, names, values, tensors, lists, phases, layers, choosing, calling)
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Diagnostic) and thing is not Diagnostic
    }
    return dict(sorted(found.items()))
