"""`use`: files of functions. What a file declares beside functions has no place in another policy, so it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.language import ast
from mccompile.language.errors.calling import RefusedLibrary
from mccompile.language.errors.layers import RefusedBase
from mccompile.language.parse import parse

Loader = Callable[[ast.Extends], Source]
"""Finds the text of an extended policy; raises `PolicyError` (MC0108, MC0109) where there is none."""

MOST_LIBRARIES = 16
"""Files of functions that one policy may use, those that its libraries use among them."""


def with_libraries(policy: ast.PolicyAst, loader: Loader) -> ast.PolicyAst:
    """The policy with the functions of its libraries in the place of `use`; each file is read once.

    Raises `PolicyError` (MC0108, MC0109, MC0286) for a file that is missing, no text or no library.
    """
    below = [item for item in policy.items if isinstance(item, ast.UseDecl)]
    seen: list[Source] = [policy.span.source]
    found: list[ast.Item] = []
    while below:
        use = below.pop(0)
        source = _source(use, loader)
        if any(_same(source, one) for one in seen):
            continue
        if len(seen) > MOST_LIBRARIES:
            why = f"more than {MOST_LIBRARIES} files are used"
            raise PolicyError([RefusedLibrary(use.library.span, use.library.value, why)])
        seen.append(source)
        library = parse(source)
        other = next((one for one in library.items if not isinstance(one, ast.FunctionDecl | ast.UseDecl)), None)
        if other is not None or library.extends is not None:
            why = "a library holds functions alone" + ("" if other is None else f", and this declares `{_head(other)}`")
            raise PolicyError([RefusedLibrary(use.library.span, use.library.value, why)])
        below += [one for one in library.items if isinstance(one, ast.UseDecl)]
        found += [one for one in library.items if isinstance(one, ast.FunctionDecl)]
    own = [item for item in policy.items if not isinstance(item, ast.UseDecl)]
    return dataclasses.replace(policy, items=(*found, *own)) if len(seen) > 1 else policy


def is_library(policy: ast.PolicyAst) -> bool:
    """Whether a file declares functions alone."""
    functions = [item for item in policy.items if isinstance(item, ast.FunctionDecl)]
    return bool(functions) and all(isinstance(item, ast.FunctionDecl | ast.UseDecl) for item in policy.items)


def _source(use: ast.UseDecl, loader: Loader) -> Source:
    try:
        return loader(ast.Extends(use.library, use.span))
    except PolicyError as error:
        refused = [RefusedLibrary(d.span, d.path, d.why) for d in error.diagnostics if isinstance(d, RefusedBase)]
        raise PolicyError(refused or error.diagnostics) from None


def _same(a: Source, b: Source) -> bool:
    return a.path == b.path if a.path and b.path else a == b


def _head(item: ast.Item) -> str:
    """The first words of a declaration."""
    return " ".join(item.span.text.split()[:2])
