"""The public names and what they take, frozen: a change here is a change for every user and says so in CHANGELOG.md."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import mccompile

GOLDEN = Path(__file__).parent / "public.txt"


def described() -> str:
    """The public names, each with its parameters as they are written, one a line."""
    lines = []
    for name in sorted(mccompile.__all__):
        thing = getattr(mccompile, name)
        match thing:
            case type():
                lines += [f"class {name}"]
                members = sorted(vars(thing).items())
                lines += [f"  {member}{signature(value)}" for member, value in members if not member.startswith("_")]
            case str():
                lines.append(name)
            case _:
                lines.append(f"{name}{signature(thing)}")
    return "\n".join(lines) + "\n"


def signature(thing: object) -> str:
    """(a, b) -> c of a function; -> c of a property; defaults that are functions by name."""
    if isinstance(thing, property):
        return f" -> {inspect.signature(thing.fget).return_annotation}" if thing.fget else ""
    if not callable(thing):
        return ""
    text = str(inspect.signature(thing)).replace("'", "")
    text = re.sub(r"<function (\w+) at \w+>", r"\1", text)
    return text if len(text) < 100 else text.replace(", *, ", ", *,\n    ").replace(" = None, ", " = None,\n    ")


def test_public_names_are_frozen(update_golden: bool) -> None:
    if update_golden:
        GOLDEN.write_text(described())
    assert described() == GOLDEN.read_text()


def test_the_version_is_that_of_the_distribution() -> None:
    assert mccompile.__version__ == importlib.metadata.version("mccompile")


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError, match="compile"):
        mccompile.compil  # noqa: B018
