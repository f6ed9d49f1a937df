"""A recorded run as a folder: settings and numbers, every decision, which tokens were computed, the videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mccompile.backend.records import write_record
from mccompile.generate.places import Write
from mccompile.generate.video import to_bytes
from mccompile.runtime.trace import Event, write_jsonl
from mccompile.studio.report.story import Story

RUN, EVENTS, VIDEOS, MASKS = "run.json", "events.jsonl", "videos.npz", "masks.npz"
STORY, WEIGHTS, THUMBNAILS = "story.json", "weights.npz", "thumbnails.npz"
FILES = (RUN, EVENTS, VIDEOS, MASKS, STORY, WEIGHTS, THUMBNAILS)


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the generation. seconds: of the pipeline's call. steps: seconds of each step of the sampler.

    tokens, flops: shares of vanilla's, 0..1, None where they were not counted. step_flops: of each step, in FLOPs; none
    where they were not counted.
    """

    name: str
    policy: str
    seconds: float
    tokens: float
    flops: float | None
    steps: tuple[float, ...]
    step_flops: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded run. The last way is the policy; the first, if there are several, is vanilla.

    videos: uint8 [F, H, W, 3] by way. events: the policy's. masks: by (row, branch) [chunks, tokens], what the first
    sample computed. said: whether the output is the model's. refusals: what of the policy was refused, and why.
    weights: by (row, branch) [chunks, tokens], what each token's motion counts, 255 the most of its call. thumbnails:
    uint8 [h, w, 3] by (chunk, own step), the middle frame of the chunk as the step predicted it. story: the rest.
    """

    about: Mapping[str, object]
    said: str
    refusals: tuple[str, ...]
    fps: int
    ways: tuple[Way, ...]
    videos: tuple[NDArray[np.uint8], ...]
    events: tuple[Event, ...]
    masks: Mapping[tuple[int, str], NDArray[np.bool_]]
    weights: Mapping[tuple[int, str], NDArray[np.uint8]]
    thumbnails: Mapping[tuple[int, int], NDArray[np.uint8]]
    story: Story

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
        weights = {f"{row} {branch}": weight for (row, branch), weight in self.weights.items()}
        thumbnails = {f"{chunk} {step}": small for (chunk, step), small in self.thumbnails.items()}
        story = json.dumps(write_record(self.story)) + "\n"
        return {
            EVENTS: lambda path: write_jsonl(path, self.events),
            MASKS: lambda path: _write_arrays(path, masks),
            VIDEOS: lambda path: _write_arrays(path, videos),
            WEIGHTS: lambda path: _write_arrays(path, weights),
            THUMBNAILS: lambda path: _write_arrays(path, thumbnails),
            STORY: lambda path: _write_text(path, story),
            RUN: lambda path: _write_text(path, text),  # last: with it the folder is whole
        }


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.uint8]]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
