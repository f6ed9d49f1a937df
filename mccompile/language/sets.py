"""Finds the set that a policy names: a shipped one, or `"FILE.toml:NAME"` of a file beside the policy."""

from __future__ import annotations

from pathlib import Path

from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language import ast
from mccompile.language.coefficients import CoefficientSet, SetKind, coefficient_sets, read_sets, set_names
from mccompile.language.errors import names


def find_set(kind: SetKind, name: ast.Text) -> CoefficientSet | Diagnostic:
    """The set of that name, or what to tell of it: MC0209 for an unknown one, MC0270 for a file that is not read.

    A policy is data that others wrote: it reads nothing but files of sets in its own folder or below.
    """
    file, colon, own = name.value.rpartition(":")
    if not colon:
        found = coefficient_sets().get((kind, name.value))
        return found or names.UnknownSet(name.span, kind, name.value, set_names(kind))
    place = name.span.source.path
    folder = Path.cwd() if place is None else place.parent
    path = folder / file
    try:
        why = _refused(path, folder)
        sets = {} if why else read_sets(path)
    except OSError as error:
        why = (error.strerror or "no file").lower()
    except ValueError as error:
        why = str(error)
    if why:
        return names.RefusedSets(name.span, file, why)
    known = tuple(sorted(name for of, name in sets if of == kind))
    return sets.get((kind, own)) or names.UnknownSet(name.span, kind, own, known, file)


def _refused(path: Path, folder: Path) -> str:
    """Why the file is not read; "" if it is, or if there is none."""
    if path.suffix != ".toml":
        return "its name does not end in `.toml`"
    try:
        found = path.resolve()
        if not found.is_relative_to(folder.resolve()):
            return "it lies outside of the policy's own folder"
        return "" if found.is_file() or not found.exists() else "it is no regular file"
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return "its name leads to no file"
