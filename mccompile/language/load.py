"""Loads a policy by name, by path or from text, and turns it into IR."""

from __future__ import annotations

from pathlib import Path

from mccompile import ir
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source, Span
from mccompile.language import ast
from mccompile.language.check import check
from mccompile.language.choices import Picks, find_choices, resolved
from mccompile.language.errors.layers import RefusedBase
from mccompile.language.errors.syntax import NoSuchPolicy, NotText
from mccompile.language.extend import Merged, chain, merge
from mccompile.language.parse import parse
from mccompile.resources import data_folder, shipped_policies

LARGEST = 250_000
"""The most bytes of a policy file. The longest policy that we know has a thousand."""


def find_policy(policy: str | Path | Source) -> Source:
    """The text of a policy.

    A `Source` is itself; a `Path`, or a string that ends in `.policy` or holds a separator, is a file; a
    string with a brace is the text of a policy; any other string names a shipped policy.
    Raises `PolicyError` (MC0108, MC0109) if there is none.
    """
    match policy:
        case Source():
            return policy
        case Path():
            return read_policy(policy, str(policy))
        case str() if "{" in policy or "\n" in policy:
            return Source.of_text(policy)
        case str() if policy.endswith(".policy") or "/" in policy or "\\" in policy:
            return read_policy(Path(policy), policy)
        case _:
            return _shipped(policy, None)


def read_policy(path: Path, shown: str, span: Span | None = None) -> Source:
    """The policy file at `path`, named `shown` in messages; `span` is the place that named it.

    Raises `PolicyError` (MC0108, MC0109) for a file that is missing, too large or no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise PolicyError([NotText(span, shown, f"it is larger than {LARGEST:,} bytes")])
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise PolicyError([_missing(shown, span)]) from None
    except UnicodeDecodeError as error:
        raise PolicyError([NotText(span, shown, f"byte {error.start} is not UTF-8")]) from None
    except OSError as error:
        raise PolicyError([NotText(span, shown, (error.strerror or "no file").lower())]) from None
    return Source(shown, text.replace("\r\n", "\n"), path.resolve())


def find_base(extends: ast.Extends) -> Source:
    """The text that `extends` names: a shipped policy, or a path relative to the policy's own file.

    A policy is data that others wrote: it reads nothing but policies beside it and below. Raises `PolicyError` (MC0108,
    MC0109, MC0252).
    """
    base = extends.base
    if isinstance(base, ast.Name):
        return _shipped(base.text, base.span)
    own = base.span.source.path
    folder = Path.cwd() if own is None else own.parent
    path = folder / base.value
    why = _refused(path, folder)
    if why:
        raise PolicyError([RefusedBase(base.span, base.value, why)])
    return read_policy(path, base.value, base.span)


def _refused(path: Path, folder: Path) -> str:
    """Why the file is not read as a base; "" if it is, or if there is none."""
    try:
        if path.is_dir():
            return ""  # that it is no file is said where it is read
        if path.suffix != ".policy":
            return "its name does not end in `.policy`"
        found, allowed = path.resolve(), (folder.resolve(), data_folder("policies").resolve())
        if not any(found.is_relative_to(place) for place in allowed):
            return "it lies outside of the policy's own folder"
        return "" if found.is_file() or not found.exists() else "it is no regular file"
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that no file can have
        return "its name leads to no file"


def load_policy(policy: str | Path | Source, picks: Picks | None = None) -> ir.PolicyIR:
    """The IR of a policy by shipped name, path or text. picks: the alternatives of its choices, else the first ones.

    Raises `PolicyError` with all diagnostics of the first phase that refuses it; ValueError for picks that it does not
    have.
    """
    return check(parse(find_policy(policy)), find_base, picks)


def load_merged(policy: str | Path | Source, picks: Picks | None = None) -> Merged:
    """The declarations of a policy that `load_policy` takes, with those of its bases, as they are written."""
    policies = chain(parse(find_policy(policy)), find_base)
    chosen = {name: words[0] for name, words in _words(policies).items()} | dict(picks or {})
    return merge([resolved(one, chosen) for one in policies], [])


def load_choices(policy: str | Path | Source) -> dict[str, tuple[str, ...]]:
    """The alternatives of each choice of a policy and its bases, the one that holds by itself first."""
    return _words(chain(parse(find_policy(policy)), find_base))


def _words(policies: list[ast.PolicyAst]) -> dict[str, tuple[str, ...]]:
    return {name: choice.words for name, choice in find_choices(policies, []).items()}


def _shipped(name: str, span: Span | None) -> Source:
    if name not in shipped_policies():
        raise PolicyError([_missing(name, span)])
    path = data_folder("policies") / f"{name}.policy"
    return Source(f"policies/{name}.policy", path.read_text(encoding="utf-8"), path.resolve())


def _missing(name: str, span: Span | None) -> NoSuchPolicy:
    return NoSuchPolicy(span, name, shipped_policies())
