"""A source text, and the spans within it."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
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
        return bisect_right(_line_starts(self.text), offset)

    def column_of(self, offset: int) -> int:
        """Column number, from 1."""
        return offset - _line_starts(self.text)[self.line_of(offset) - 1] + 1

    def line(self, number: int) -> str:
        """The text of line `number` (from 1) without its line end."""
        starts = (*_line_starts(self.text)[number - 1 : number + 1], len(self.text) + 1)
        return self.text[starts[0] : starts[1] - 1] if len(starts) > 1 else ""


@lru_cache(maxsize=32)
def _line_starts(text: str) -> tuple[int, ...]:
    """The offset of each line's first character. Kept, because every place in an error asks for it."""
    return (0, *(match.end() for match in re.finditer("\n", text)))


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
