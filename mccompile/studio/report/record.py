"""A recorded run as a folder: settings and numbers, every decision, which tokens were computed, the videos."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mccompile.backend.records import read_record
from mccompile.generate.places import Write
from mccompile.generate.run import OnStep
from mccompile.generate.video import to_bytes
from mccompile.runtime.errors import TraceMalformed
from mccompile.runtime.trace import Event, read_jsonl, write_jsonl
from mccompile.studio.report.arrays import read_arrays
from mccompile.studio.report.errors import NoRecord

RUN, EVENTS, VIDEOS, MASKS = "run.json", "events.jsonl", "videos.npz", "masks.npz"
FILES = (RUN, EVENTS, VIDEOS, MASKS)
MOST_FPS = 1000
MOST = 10_000  # chunks of a video, steps of a schedule: a page draws a cell for each


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the generation. seconds: of the pipeline's call. steps: seconds of each step of the sampler.

    tokens, flops: shares of vanilla's, 0..1, None where they were not counted.
    """

    name: str
    policy: str
    seconds: float
    tokens: float
    flops: float | None
    steps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded run. The last way is the policy; the first, if there are several, is vanilla.

    videos: uint8 [F, H, W, 3] by way. events: the policy's. masks: by (row, branch) [chunks, tokens], what the first
    sample computed. said: whether the output is the model's. refusals: what of the policy was refused, and why.
    """

    about: Mapping[str, object]
    said: str
    refusals: tuple[str, ...]
    fps: int
    ways: tuple[Way, ...]
    videos: tuple[NDArray[np.uint8], ...]
    events: tuple[Event, ...]
    masks: Mapping[tuple[int, str], NDArray[np.bool_]]

    def files(self) -> dict[str, Write]:
        """What writes each file of the folder, by its name."""
        numbers = {
            "about": dict(self.about), "said": self.said, "refusals": self.refusals, "fps": self.fps,
            "ways": [asdict(way) for way in self.ways],
            "mask_tokens": next((mask.shape[-1] for mask in self.masks.values()), 0),
        }  # fmt: skip
        text = json.dumps(numbers, indent=1) + "\n"
        masks = {f"{row} {branch}": np.packbits(mask, axis=-1) for (row, branch), mask in self.masks.items()}
        videos = {str(i): video for i, video in enumerate(self.videos)}
        return {
            EVENTS: lambda path: write_jsonl(path, self.events),
            MASKS: lambda path: _write_arrays(path, masks),
            VIDEOS: lambda path: _write_arrays(path, videos),
            RUN: lambda path: _write_text(path, text),  # last: with it the folder is whole
        }


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
        record = Record(
            about, numbers.said, numbers.refusals, numbers.fps, numbers.ways, frames, read_jsonl(folder / EVENTS), masks
        )
        _check(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        why = f"{str(error).splitlines()[0]:.200}" if str(error) else type(error).__name__
        raise NoRecord(str(folder), why) from error
    except TraceMalformed as error:
        raise NoRecord(str(folder), error.diagnostics[0].message()) from error
    return record


def _check(record: Record) -> None:
    """Raises ValueError where the parts of a record do not fit together."""
    if not record.ways or len(record.ways) != len(record.videos) or not 1 <= record.fps <= MOST_FPS:
        raise ValueError(f"it has {len(record.ways)} runs, {len(record.videos)} videos, {record.fps} frames a second")
    numbers = [n for w in record.ways for n in (w.seconds, w.tokens, w.flops or 0.0, *w.steps)]
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
    for call, mask in record.masks.items():
        if mask.ndim != 2 or not mask.size or mask.shape[0] < called.get(call, 0):
            raise ValueError(f"its mask of row {call[0]} is {list(mask.shape)}")


def _unpacked(name: str, mask: NDArray[np.uint8], tokens: int) -> NDArray[np.bool_]:
    if mask.ndim != 2 or not 8 * (mask.shape[1] - 1) < tokens <= 8 * mask.shape[1]:
        raise ValueError(f"its mask `{name:.40}` is {list(mask.shape)}, for {tokens} tokens")
    return np.unpackbits(mask, axis=-1, count=tokens).astype(np.bool_)


def _called(name: str) -> tuple[int, str]:
    row, branch = name.split(" ", 1)
    return int(row), branch


def masks_of(events: Sequence[Event], masks: Sequence[NDArray[np.bool_]]) -> dict[tuple[int, str], NDArray[np.bool_]]:
    """The masks of every call [samples, chunks, ...] by (row, branch), those of the first sample as [chunks, tokens].

    Events and masks are written in the order of the calls. A call that the model itself ran leaves no mask; where one
    did, which call a mask belongs to is not known, and there are none.
    """
    calls = list(dict.fromkeys((e.row, e.branch) for e in events))
    if len(calls) != len(masks):
        return {}
    return {call: mask[0].reshape(mask.shape[1], -1) for call, mask in zip(calls, masks, strict=True)}


def as_bytes(videos: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.uint8], ...]:
    """Videos as they are kept."""
    return tuple(to_bytes(video) for video in videos)


@dataclass(slots=True)
class Stopwatch:
    """Seconds of each step of the latest run of each way, beside whatever else is told the steps."""

    begun: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def of(self, name: str) -> tuple[float, ...]:
        """The seconds of each step of a way's latest run."""
        return tuple(self.seconds.get(name, ()))

    def watch(self, announce: Callable[[str], OnStep]) -> Callable[[str], OnStep]:
        """`announce`, with every step timed under the way's name."""

        def announced(name: str) -> OnStep:
            told = announce(name)
            own = self.seconds[re.sub(r"(: warm-up| \d+/\d+)$", "", name)] = []
            self.begun = time.perf_counter()

            def step(done: int, total: int) -> None:
                now = time.perf_counter()
                own.append(now - self.begun)
                self.begun = now
                told(done, total)

            return step

        return announced
