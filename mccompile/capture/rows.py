"""What the rows of an axis are: spans of video tokens and of other tokens (text, history, padding), in order.

A model may cut the video tokens and join them again, for example to modulate the first frame in another way. In a
partial run, a part `video[0:21]` holds all selected rows, but only the rows of tokens 0 to 20 are meaningful. When the
parts are joined, each row is taken from the part to which its token belongs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mccompile.capture.facts import Extent, is_dynamic
from mccompile.capture.types import Beside


@dataclass(frozen=True, slots=True)
class RowSpan:
    """A run of rows: video tokens from `start` on out of `count`, or other rows, which every run computes."""

    video: bool
    size: Extent
    start: Extent = (0, 0)
    count: Extent = (0, 0)

    @property
    def cut(self) -> bool:
        """Whether these are some of the video tokens only."""
        return self.video and self.size != self.count

    @property
    def stop(self) -> Extent:
        return plus(self.start, self.size)


RowSpans: TypeAlias = tuple[RowSpan, ...]
Labels: TypeAlias = tuple[RowSpans | None, ...]  # one entry per axis; None: no video tokens on this axis


def plus(a: Extent, b: Extent) -> Extent:
    return a[0] + b[0], a[1] + b[1]


def video(count: Extent) -> RowSpan:
    """All video tokens."""
    return RowSpan(True, count, (0, 0), count)


def other(size: Extent) -> RowSpans:
    return (RowSpan(False, size),)


def total(rows: RowSpans) -> Extent:
    return sum(s.size[0] for s in rows), sum(s.size[1] for s in rows)


def _number(extent: Extent) -> str:
    return "|".join(map(str, dict.fromkeys(extent)))


def key(rows: RowSpans) -> str:
    """`video`, `11+video`, `video[0:21]`; a size that differs between the probes is written `21|55`."""
    words = []
    for span in rows:
        word = "video" if span.video else _number(span.size)
        words.append(f"{word}[{_number(span.start)}:{_number(span.stop)}]" if span.cut else word)
    return "+".join(words)


def joined(parts: list[RowSpans]) -> RowSpans:
    """Concatenation; neighbouring other rows and adjoining video parts become one span, empty spans vanish."""
    out: list[RowSpan] = []
    for span in (s for rows in parts for s in rows if s.size != (0, 0)):
        last = out[-1] if out else None
        adjoins = last is not None and (last.stop == span.start if span.video else True)
        if last is not None and last.video == span.video and adjoins:
            out[-1] = RowSpan(span.video, plus(last.size, span.size), last.start, last.count)
        else:
            out.append(span)
    return tuple(out)


def has_video(rows: RowSpans | None) -> bool:
    return rows is not None and any(s.video for s in rows)


def has_cut(rows: RowSpans | None) -> bool:
    return rows is not None and any(s.cut for s in rows)


def beside_video(rows: RowSpans) -> Beside | None:
    """Where all the video tokens lie among the rows; None where they are not there in one piece."""
    at = [i for i, span in enumerate(rows) if span.video]
    if len(at) != 1 or rows[at[0]].cut:
        return None
    before, after = (total(part) for part in (rows[: at[0]], rows[at[0] + 1 :]))
    return Beside(*(None if is_dynamic(size) else size[0] for size in (before, after)))


def any_video(labels: Labels) -> bool:
    return any(has_video(rows) for rows in labels)


def between(rows: RowSpans, start: Extent, stop: Extent) -> RowSpans:
    """Rows `start` to `stop`."""
    out: list[RowSpans] = []
    at: Extent = (0, 0)
    for span in rows:
        end = plus(at, span.size)
        low = tuple(max(start[i], at[i]) for i in (0, 1))
        size = tuple(max(0, min(stop[i], end[i]) - low[i]) for i in (0, 1))
        inside = (low[0] - at[0] + span.start[0], low[1] - at[1] + span.start[1]) if span.video else (0, 0)
        out.append((RowSpan(span.video, (size[0], size[1]), inside, span.count),))
        at = end
    return joined(out)
