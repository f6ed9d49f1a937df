"""Goes on behind a syntax error: the declaration with the error is blanked, so that the others can be read."""

from __future__ import annotations

import re

_WORDS = r"\b(?:param|signal|choose|function|use|phase|layers|integration|chunks|cache|branches)\b"
_DECLARED = re.compile(_WORDS)
_TOKEN = re.compile(r'"[^"\n]*"|#[^\n]*|[{}]|' + _WORDS)


def without_declaration(text: str, at: int) -> str | None:
    """The text with spaces in place of the declaration at an offset; None where its ends are not certain.

    They are certain where the declaration begins its line and its braces are closed before the next one begins a line.
    """
    starts = [m.start() for m in _TOKEN.finditer(text) if _DECLARED.fullmatch(m[0]) and _begins_line(text, m.start())]
    first = max((start for start in starts if start <= at), default=None)
    if first is None:
        return None
    after = min((start for start in starts if start > at), default=None)
    last = text.rfind("}") if after is None else after
    depth = 0
    for match in _TOKEN.finditer(text, first, last):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return None
    if depth != 0 or last < at:
        return None
    blank = re.sub(r"[^\n]", " ", text[first:last])
    return text[:first] + blank + text[last:]


def _begins_line(text: str, at: int) -> bool:
    return not text[text.rfind("\n", 0, at) + 1 : at].strip()
