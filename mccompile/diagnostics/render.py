"""Diagnostics as text, in the form of rustc: message, place, lines with carets, notes, helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mccompile.diagnostics.diagnostic import Diagnostic, Edit, Help
from mccompile.diagnostics.source import Source, Span

TAB = 4


@dataclass(frozen=True, slots=True)
class _Mark:
    span: Span
    sign: str
    text: str


def render(diagnostics: Iterable[Diagnostic]) -> str:
    """All diagnostics, an empty line between two, a line end after the last; plain text."""
    return "\n".join(render_one(diagnostic) for diagnostic in diagnostics)


def render_one(diagnostic: Diagnostic) -> str:
    """One diagnostic as lines, each ended."""
    lines = [f"error[{diagnostic.code}]: {diagnostic.message()}"]
    span, helps = diagnostic.span, diagnostic.helps()
    gutter = " " * (_number_width(diagnostic, helps) + 1)
    if span is not None:
        marks = [_Mark(span, "^", diagnostic.span_label())]
        marks += [_Mark(label.span, "-", label.text) for label in diagnostic.secondary()]
        lines += _snippets(marks, span.source, gutter)
    if diagnostic.elsewhere():
        lines.append(f"{gutter}{'-->' if span is None else ':::'} {diagnostic.elsewhere()}")
    if span is not None and diagnostic.notes():
        lines.append(f"{gutter} |")
    lines += [f"{gutter} = note: {note}" for note in diagnostic.notes()]
    for help_ in helps:
        lines.append(f"help: {help_.text}")
        lines += _edited(help_.edit, gutter) if help_.edit is not None else []
    shown = "\n".join(lines).split("\n")  # a message of a model may have several lines
    return "".join(f"{visible(line)}\n" for line in shown)


def _number_width(diagnostic: Diagnostic, helps: Sequence[Help]) -> int:
    spans = [] if diagnostic.span is None else [diagnostic.span]
    spans += [label.span for label in diagnostic.secondary()]
    spans += [help_.edit.span for help_ in helps if help_.edit is not None]
    return max((len(str(span.line)) for span in spans), default=1)


def _snippets(marks: Sequence[_Mark], first: Source, gutter: str) -> list[str]:
    lines: list[str] = []
    sources = list(dict.fromkeys([first, *(mark.span.source for mark in marks)]))
    for source in sources:
        here = [mark for mark in marks if mark.span.source == source]
        place = here[0].span
        arrow = "-->" if source is sources[0] else ":::"
        lines.append(f"{gutter}{arrow} {source.name}:{place.line}:{place.column}")
        lines.append(f"{gutter} |")
        for number in sorted({mark.span.line for mark in here}):
            lines.append(_numbered(number, source.line(number), gutter))
            lines += [_underline(mark, gutter) for mark in here if mark.span.line == number]
    return lines


def _numbered(number: int, text: str, gutter: str) -> str:
    return f" {number:>{len(gutter) - 1}} | {visible(text)}".rstrip()


def visible(text: str) -> str:
    """The text as a terminal may show it: tabs as spaces, and no character that a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.expandtabs(TAB))


def _underline(mark: _Mark, gutter: str) -> str:
    span = mark.span
    line = span.source.line(span.line)
    before = visible(line[: span.column - 1])
    under = visible(line[: span.column - 1 + (span.end - span.start)])
    width = max(1, len(under) - len(before))
    return f"{gutter} | {' ' * len(before)}{mark.sign * width} {mark.text}".rstrip()


def _edited(edit: Edit, gutter: str) -> list[str]:
    span = edit.span
    line = span.source.line(span.line)
    start = span.column - 1
    new = line[:start] + edit.text + line[start + (span.end - span.start) :]
    sign = "+" if span.start == span.end else "~"
    pad = " " * len(visible(new[:start]))
    return [
        f"{gutter} |",
        _numbered(span.line, new, gutter),
        f"{gutter} | {pad}{sign * max(1, len(edit.text))}",
    ]
