"""Writes the results of a generation: videos, a contact sheet, the trace, and a comparison as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mccompile.generate.compare import VANILLA, Comparison, ComparisonRow
from mccompile.generate.places import Results
from mccompile.generate.run import Video
from mccompile.generate.video import write_contact_sheet, write_mp4
from mccompile.runtime.trace import Event, write_jsonl

_SHOWN = 256  # pixels: smaller videos are enlarged, or nobody could see them


def single_files(out: Path, name: str) -> tuple[Path, Path]:
    """The video and its contact sheet: at `out` if that is a file name, else in the folder `out`."""
    movie = out if out.suffix else out / f"{name}.mp4"
    return movie, movie.with_suffix(".png")


def write_video(results: Results, out: Path, name: str, video: Video, fps: int) -> None:
    """The video as mp4 and as contact sheet."""
    movie, sheet = single_files(out, name)
    results.put(movie, lambda path: write_mp4(path, video, fps, _enlarged(video)))
    results.put(sheet, lambda path: write_contact_sheet(path, {name: video}))


def comparison_files(out: Path, name: str) -> tuple[Path, ...]:
    """What `write_comparison` writes of vanilla and the policy `name`."""
    videos = (out / f"{n.replace(' ', '_')}.mp4" for n in (VANILLA, name))
    return (*videos, out / "side_by_side.mp4", out / "contact.png", out / "comparison.json")


def write_comparison(results: Results, out: Path, found: Comparison, fps: int, about: Mapping[str, object]) -> None:
    """Each way's video, vanilla and policy side by side, one contact sheet, and the numbers as JSON."""
    reference, policy = (found.videos[row.name] for row in (found.rows[0], found.rows[-1]))
    one, other, side, sheet, numbers = comparison_files(out, found.rows[-1].name)
    pair, scale = np.concatenate([reference, policy], axis=2), _enlarged(reference)
    for path, video in ((one, reference), (other, policy), (side, pair)):
        results.put(path, lambda path, video=video: write_mp4(path, video, fps, scale))  # type: ignore[misc]
    results.put(sheet, lambda path: write_contact_sheet(path, found.videos))
    text = json.dumps({**about, "rows": [_numbers(found, row) for row in found.rows]}, indent=1) + "\n"
    results.put(numbers, lambda path: _write_text(path, text))


def write_trace(results: Results, path: Path, events: Sequence[Event]) -> None:
    """Every decision as JSON lines."""
    results.put(path, lambda place: write_jsonl(place, events))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _numbers(found: Comparison, row: ComparisonRow) -> dict[str, object]:
    """A row for JSON: equal videos have no finite PSNR, which JSON cannot say: null."""
    own = asdict(row) | {"median": row.median, "speed_up": found.speed_up(row)}
    own["psnr"] = row.psnr if np.isfinite(row.psnr) else None
    return own


def _enlarged(video: Video) -> int:
    return max(1, _SHOWN // min(video.shape[1:3]))
