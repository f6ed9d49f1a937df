"""Reads the record of a run from its folder, which may come from anybody."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mccompile.backend.records import read_record
from mccompile.runtime.errors import TraceMalformed
from mccompile.runtime.trace import read_jsonl
from mccompile.studio.report.arrays import read_arrays
from mccompile.studio.report.consistent import check_record
from mccompile.studio.report.errors import NoRecord
from mccompile.studio.report.record import EVENTS, MASKS, RUN, STORY, THUMBNAILS, VIDEOS, WEIGHTS, Record, Way
from mccompile.studio.report.story import Story


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The file run.json, but for `about`, which may hold anything."""

    said: str
    refusals: tuple[str, ...]
    fps: int
    ways: tuple[Way, ...]
    mask_tokens: int


def read_run(folder: Path) -> Record:
    """The run that was recorded in a folder. Raises NoRecord (MC0751)."""
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("about"), dict):
            raise ValueError(f"{RUN} has no settings")
        about = found.pop("about")
        numbers = read_record(_Numbers, found)
        videos = read_arrays(folder / VIDEOS)
        masks = {
            _called(name): _unpacked(name, mask, numbers.mask_tokens)
            for name, mask in read_arrays(folder / MASKS).items()
        }
        frames = tuple(videos[str(i)] for i in range(len(videos)))
        weights = {_called(name): weight for name, weight in read_arrays(folder / WEIGHTS).items()}
        thumbnails = {_cell(name): small for name, small in read_arrays(folder / THUMBNAILS).items()}
        story = read_record(Story, json.loads((folder / STORY).read_text(encoding="utf-8")))
        record = Record(
            about, numbers.said, numbers.refusals, numbers.fps, numbers.ways, frames, read_jsonl(folder / EVENTS),
            masks, weights, thumbnails, story,
        )  # fmt: skip
        check_record(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        why = f"{str(error).splitlines()[0]:.200}" if str(error) else type(error).__name__
        raise NoRecord(str(folder), why) from error
    except TraceMalformed as error:
        raise NoRecord(str(folder), error.diagnostics[0].message()) from error
    return record


def _unpacked(name: str, mask: NDArray[np.uint8], tokens: int) -> NDArray[np.bool_]:
    if mask.ndim != 2 or not 8 * (mask.shape[1] - 1) < tokens <= 8 * mask.shape[1]:
        raise ValueError(f"its mask `{name:.40}` is {list(mask.shape)}, for {tokens} tokens")
    return np.unpackbits(mask, axis=-1, count=tokens).astype(np.bool_)


def _called(name: str) -> tuple[int, str]:
    row, branch = name.split(" ", 1)
    return int(row), branch


def _cell(name: str) -> tuple[int, int]:
    chunk, step = name.split(" ", 1)
    return int(chunk), int(step)
