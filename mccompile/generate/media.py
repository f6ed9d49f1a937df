"""Images and videos in: what a generation starts from, read from files."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from mccompile.generate.errors import OptionRefused


def read_image(path: str) -> Image.Image:
    """The image of a file, as RGB. Raises OptionRefused (MC0705)."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unread(path, error, "an image such as a .png") from error


def read_video(path: str) -> list[Image.Image]:
    """The frames of a video file, as RGB. Raises OptionRefused (MC0705)."""
    try:
        with av.open(path) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
    except (OSError, av.error.FFmpegError, IndexError) as error:
        raise _unread(path, error, "a video such as an .mp4") from error
    if not frames:
        raise OptionRefused(path, "it has no frames", "give a video such as an .mp4")
    return frames


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines are none. Raises OptionRefused (MC0705)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unread(str(path), error, "a text file with a prompt a line") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise OptionRefused(f"--prompts {path}", "the file has no prompt", "write one prompt a line")
    return found


def _unread(path: str, error: Exception, wanted: str) -> OptionRefused:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return OptionRefused(path, f"it cannot be read ({first})", f"give {wanted}")
