"""Errors as data: one frozen class per code, text at class level, values in fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

from mccompile.diagnostics.source import Span


@dataclass(frozen=True, slots=True)
class Label:
    """A second guilty place, underlined with dashes."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """What a help proposes: `text` in the place of `span`."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Help:
    """The only part of a diagnostic that suggests; with an edit the mended line is shown."""

    text: str
    edit: Edit | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Base of every error class. `title`, `label` and `note` are templates filled from the fields.

    `span` is None for an error that lies in no text (a parameter given on the command line, a model).
    Subclasses are frozen dataclasses that set `code` and `title`, and override the methods where a
    template does not do.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    label: ClassVar[str] = ""
    note: ClassVar[str] = ""

    span: Span | None

    def _fill(self, template: str) -> str:
        return template.format(**{field.name: getattr(self, field.name) for field in fields(self)})

    def message(self) -> str:
        return self._fill(self.title)

    def span_label(self) -> str:
        return self._fill(self.label)

    def secondary(self) -> tuple[Label, ...]:
        return ()

    def elsewhere(self) -> str:
        """The guilty place outside of all policies: a module of the model, a file. "" where there is none."""
        return ""

    def notes(self) -> tuple[str, ...]:
        return (self._fill(self.note),) if self.note else ()

    def helps(self) -> tuple[Help, ...]:
        return ()


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` most probably meant, or None when nothing is near."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(candidates)}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def words(items: Iterable[str], joint: str = "or") -> str:
    """`a`, `b` or `c`."""
    quoted = [f"`{item}`" for item in items]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {joint} {quoted[-1]}"
