"""Whether the parts of a record that was read fit together, so that a page can be made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mccompile.studio.report.record import Record
from mccompile.studio.report.story import Story

MOST_FPS = 1000
MOST = 10_000  # chunks of a video, steps of a schedule: a page draws a cell for each


def check_record(record: Record) -> None:
    """Raises ValueError where the parts of a record do not fit together."""
    if not record.ways or len(record.ways) != len(record.videos) or not 1 <= record.fps <= MOST_FPS:
        raise ValueError(f"it has {len(record.ways)} runs, {len(record.videos)} videos, {record.fps} frames a second")
    numbers = [n for w in record.ways for n in (w.seconds, w.tokens, w.flops or 0.0, *w.steps, *w.step_flops)]
    if not all(0 <= n < math.inf for n in numbers) or not all(w.seconds > 0 for w in record.ways):
        raise ValueError("its times or shares are no finite numbers")
    (shape, *others) = {video.shape for video in record.videos}
    if others or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError("its videos are no frames of one size")
    for event in record.events:
        if not (0 <= event.chunk < MOST and 0 <= event.step < MOST and 0 <= event.computed <= event.tokens):
            raise ValueError(f"its decision in row {event.row} counts what is not there")
    called: dict[tuple[int, str], int] = {}
    for event in record.events:
        if event.sample == 0:
            called[event.row, event.branch] = called.get((event.row, event.branch), 0) + 1
    for call, mask in (*record.masks.items(), *record.weights.items()):
        if mask.ndim != 2 or not mask.size or mask.shape[0] < called.get(call, 0):
            raise ValueError(f"its mask of row {call[0]} is {list(mask.shape)}")
    _check_thumbnails(record)
    _check_story(record.story)


def _check_thumbnails(record: Record) -> None:
    sizes = {small.shape for small in record.thumbnails.values()}
    if len(sizes) > 1 or any(len(size) != 3 or size[2] != 3 or 0 in size for size in sizes):
        raise ValueError("its thumbnails are no pictures of one size")
    if not all(0 <= chunk < MOST and 0 <= step < MOST for chunk, step in record.thumbnails):
        raise ValueError("its thumbnails are of chunks or steps that are not there")


def _check_story(story: Story) -> None:
    if not all(math.isfinite(number) for number in _numbers(story)):
        raise ValueError("its story has numbers that are not finite")
    if max(len(story.plan), len(story.regions), *(len(t.values) for t in story.thresholds), 0) > MOST:
        raise ValueError("its plan has too many steps")
    if any(not 0 <= chunk.chunk < MOST for call in story.calls for chunk in call.chunks):
        raise ValueError("its story tells of chunks that are not there")


def _numbers(story: Story) -> Iterator[float]:
    yield story.watching
    yield from (value for t in story.thresholds for value in t.values if value is not None)
    for call in story.calls:
        yield float(call.kept)
        yield from (value for c in call.chunks for _, value in (*c.accounts, *c.signals))
