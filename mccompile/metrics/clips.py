"""Videos in: files by PyAV, folders of frames by Pillow."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mccompile.metrics.errors import VideoUnreadable

BROKEN_IMAGE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, LookupError, TypeError,
    OverflowError, MemoryError, EOFError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow raises where a file is no image of the kind that its head says."""
FRAME_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True, slots=True)
class Clip:
    """frames: [F, H, W, 3] in 0..1. rate: frames per second; None where a folder of frames does not say."""

    frames: NDArray[np.float32]
    rate: Fraction | None


def read_clip(path: Path) -> Clip:
    """The video in a file, or in a folder of frames (the numbers in their names are their order).

    Raises VideoUnreadable (MC0731).
    """
    if path.is_dir():
        return Clip(_stacked(path, _frames_of_folder(path)), None)
    if not path.is_file():
        raise VideoUnreadable(str(path), "there is no such file or folder")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoUnreadable(str(path), "it has no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate
            frames = [
                frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in container.decode(stream)
            ]
    except (av.error.FFmpegError, OSError) as error:
        raise VideoUnreadable(str(path), str(error.strerror or error).lower()) from error
    except (ValueError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise VideoUnreadable(str(path), str(error).lower()) from error
    return Clip(_stacked(path, frames), rate)


def _frames_of_folder(folder: Path) -> list[NDArray[np.uint8]]:
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES), key=_order)
    frames = []
    for path in found:
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except BROKEN_IMAGE as error:
            raise VideoUnreadable(str(path), "it is no image that can be read") from error
    return frames


def _order(path: Path) -> tuple[list[int], str]:
    """Frame 10 comes after frame 9, whether or not the numbers are padded."""
    return [int(number) for number in re.findall(r"\d+", path.stem)], path.name


def _stacked(path: Path, frames: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    if not frames:
        raise VideoUnreadable(str(path), "it has no frames")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise VideoUnreadable(str(path), f"its frames have {len(sizes)} different sizes")
    return np.stack(frames).astype(np.float32) / 255.0
