"""A source text, and the spans within it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """A policy text with the name shown in messages; `path` is None for text that lies in no file."""

    name: str
    text: str = field(repr=False)
    path: Path | None = None

    @staticmethod
    def of_text(text: str, name: str = "<text>") -> Source:
        return Source(name, text.replace("\r\n", "\n"))

    def span(self, start: int, end: int) -> Span:
        return Span(self, start, end)

    def line_of(self, offset: int) -> int:
        """Line number, from 1."""
        return self.text.count("\n", 0, offset) + 1

    def column_of(self, offset: int) -> int:
        """Column number, from 1."""
        return offset - (self.text.rfind("\n", 0, offset) + 1) + 1

    def line(self, number: int) -> str:
        """The text of line `number` (from 1) without its line end."""
        lines = self.text.split("\n")
        return lines[number - 1] if number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start..end (end excluded) of a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.line_of(self.start)

    @property
    def column(self) -> int:
        return self.source.column_of(self.start)

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of `other`, both in the same source."""
        return Span(self.source, self.start, other.end)

    def after(self) -> Span:
        """The empty place just behind this span, where a help inserts text."""
        return Span(self.source, self.end, self.end)
