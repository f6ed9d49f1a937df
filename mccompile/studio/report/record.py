"""A recorded run as a folder: settings and numbers, every decision, which tokens were computed, the videos."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mccompile.generate.places import Write
from mccompile.generate.run import OnStep
from mccompile.generate.video import to_bytes
from mccompile.runtime.trace import Event, read_jsonl, write_jsonl
from mccompile.studio.report.errors import NoRecord

RUN, EVENTS, VIDEOS, MASKS = "run.json", "events.jsonl", "videos.npz", "masks.npz"
FILES = (RUN, EVENTS, VIDEOS, MASKS)


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


def read_record(folder: Path) -> Record:
    """The run that was recorded in a folder. Raises NoRecord (MC0751)."""
    try:
        numbers = json.loads((folder / RUN).read_text(encoding="utf-8"))
        with np.load(folder / VIDEOS) as kept:
            videos = tuple(kept[str(i)] for i in range(len(kept.files)))
        with np.load(folder / MASKS) as kept:
            masks = {
                _called(name): np.unpackbits(kept[name], axis=-1, count=numbers["mask_tokens"]).astype(np.bool_)
                for name in kept.files
            }
        events = read_jsonl(folder / EVENTS)
        ways = tuple(Way(**{**way, "steps": tuple(way["steps"])}) for way in numbers["ways"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoRecord(str(folder), str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return Record(
        numbers["about"], numbers["said"], tuple(numbers["refusals"]), numbers["fps"], ways, videos, events, masks
    )


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
