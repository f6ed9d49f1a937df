"""What the rows of an axis are: spans of video tokens and of other tokens (text, padding), in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mccompile.capture.facts import Extent


@dataclass(frozen=True, slots=True)
class Span:
    """A run of rows: all video tokens, or `size` rows that every partial run computes."""

    video: bool
    size: Extent


Rows: TypeAlias = tuple[Span, ...]
Labels: TypeAlias = tuple[Rows | None, ...]  # one entry per axis; None: no video tokens on this axis


def total(rows: Rows) -> Extent:
    return sum(s.size[0] for s in rows), sum(s.size[1] for s in rows)


def key(rows: Rows) -> str:
    """`video`, `11+video`; a size that differs between the probes is written `11|14`."""
    return "+".join("video" if s.video else "|".join(map(str, dict.fromkeys(s.size))) for s in rows)


def joined(parts: list[Rows]) -> Rows:
    """Concatenation; neighbouring other tokens become one span, empty spans vanish."""
    out: list[Span] = []
    for span in (s for rows in parts for s in rows if s.size != (0, 0)):
        if out and not out[-1].video and not span.video:
            size = out[-1].size
            out[-1] = Span(False, (size[0] + span.size[0], size[1] + span.size[1]))
        else:
            out.append(span)
    return tuple(out)


def other(size: Extent) -> Rows:
    return (Span(False, size),)


def has_video(rows: Rows | None) -> bool:
    return rows is not None and any(s.video for s in rows)


def any_video(labels: Labels) -> bool:
    return any(has_video(rows) for rows in labels)


def between(rows: Rows, start: Extent, stop: Extent) -> Rows | None:
    """Rows `start` to `stop`; None where a cut falls inside the video tokens at either probe."""
    out: list[Rows] = []
    at: Extent = (0, 0)
    for span in rows:
        end = at[0] + span.size[0], at[1] + span.size[1]
        size = tuple(max(0, min(stop[i], end[i]) - max(start[i], at[i])) for i in (0, 1))
        if span.video and size not in (span.size, (0, 0)):
            return None
        out.append((Span(span.video, (size[0], size[1])),))
        at = end
    return joined(out)
