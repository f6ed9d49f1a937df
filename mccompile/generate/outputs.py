"""Writes the results of a generation: videos, a contact sheet, the trace, and a comparison as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mccompile.generate.compare import Comparison, ComparisonRow
from mccompile.generate.errors import OutputRefused
from mccompile.generate.run import Video
from mccompile.generate.video import write_contact_sheet, write_mp4
from mccompile.runtime.trace import Event, write_jsonl

_SHOWN = 256  # pixels: smaller videos are enlarged, or nobody could see them


def prepare_place(path: Path) -> None:
    """Makes the folder that `path` is (or, with a suffix, lies in). Raises OutputRefused."""
    folder = path.parent if path.suffix else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(str(path), (error.strerror or str(error)).lower()) from None


def write_video(out: Path, name: str, video: Video, fps: int) -> tuple[Path, ...]:
    """The video as mp4 and as contact sheet: at `out` if that is a file name, else in the folder `out`."""
    movie = out if out.suffix else out / f"{name}.mp4"
    sheet = movie.with_suffix(".png")
    try:
        write_mp4(movie, video, fps, _enlarged(video))
        write_contact_sheet(sheet, {name: video})
    except OSError as error:
        raise OutputRefused(str(movie), str(error)) from None
    return movie, sheet


def write_comparison(out: Path, found: Comparison, fps: int, about: Mapping[str, object]) -> tuple[Path, ...]:
    """Each way's video, vanilla and policy side by side, one contact sheet, and the numbers as JSON."""
    sheet, side, numbers = out / "contact.png", out / "side_by_side.mp4", out / "comparison.json"
    names = tuple(found.videos)
    written = []
    try:
        for name in (names[0], names[-1]):
            written.append(out / f"{name.replace(' ', '_')}.mp4")
            write_mp4(written[-1], found.videos[name], fps, _enlarged(found.videos[name]))
        pair = np.concatenate([found.videos[names[0]], found.videos[names[-1]]], axis=2)
        write_mp4(side, pair, fps, _enlarged(found.videos[names[0]]))
        write_contact_sheet(sheet, found.videos)
        rows = [_numbers(found, row) for row in found.rows]
        numbers.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputRefused(str(out), str(error)) from None
    return (*written, side, sheet, numbers)


def write_trace(path: Path, events: Sequence[Event]) -> None:
    """Every decision as JSON lines. Raises OutputRefused."""
    try:
        write_jsonl(path, events)
    except OSError as error:
        raise OutputRefused(str(path), (error.strerror or str(error)).lower()) from None


def _numbers(found: Comparison, row: ComparisonRow) -> dict[str, object]:
    """A row for JSON: equal videos have no finite PSNR, which JSON cannot say: null."""
    own = asdict(row) | {"median": row.median, "speed_up": found.speed_up(row)}
    own["psnr"] = row.psnr if np.isfinite(row.psnr) else None
    return own


def _enlarged(video: Video) -> int:
    return max(1, _SHOWN // min(video.shape[1:3]))
