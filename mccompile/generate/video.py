"""Videos out: mp4 files by PyAV, contact sheets by Pillow."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CODECS: Final = ("libx264", "h264", "mpeg4")
"""Encoders in order of preference; the first that this build of FFmpeg has is used."""
LABEL_HEIGHT: Final = 16
GAP: Final = 2


def to_bytes(video: NDArray[np.generic]) -> NDArray[np.uint8]:
    """`video` [F, H, W, 3] as uint8; floats are taken as [0, 1] and clipped.

    Raises ValueError where the array has another form, no frame, or values that are not finite.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(f"a video must be [frames, height, width, 3] with no empty side, got {list(video.shape)}")
    if video.dtype == np.uint8:
        return video.astype(np.uint8, copy=False)
    if not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"a video must be uint8 or floating in [0, 1], got {video.dtype}")
    values = video.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the video has values that are not finite; the generation that made it went wrong")
    return (values.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def write_mp4(path: Path, video: NDArray[np.generic], fps: int, upscale: int = 1) -> None:
    """Write `video` [F, H, W, 3] (uint8, or floats in [0, 1]) to `path` at `fps` frames per second.

    Each pixel becomes `upscale` x `upscale`; a side that is then odd is padded by one pixel, for the codecs' colour
    format wants even sides. Raises ValueError for a malformed video, rate or scale.
    """
    frames = _enlarged(to_bytes(video), upscale)
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4") as container:
        name = available_codec()
        stream = container.add_stream(name, rate=Fraction(fps))
        if not isinstance(stream, av.VideoStream):
            raise RuntimeError(f"FFmpeg gave a stream of type {stream.type} for the video codec {name}")
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if name == "mpeg4":
            stream.bit_rate = 4_000_000
        else:
            stream.options = {"crf": "16"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def available_codec() -> str:
    """The first of `CODECS` that this FFmpeg can encode; RuntimeError where it has none."""
    for name in CODECS:
        try:
            av.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name
    raise RuntimeError(f"this build of FFmpeg encodes none of {', '.join(CODECS)}; install the `av` wheel from PyPI")


def write_contact_sheet(
    path: Path, videos: Mapping[str, NDArray[np.generic]], frames: int = 8, upscale: int = 2
) -> None:
    """Write a png with one row per video: its label above `frames` evenly spaced frames, enlarged `upscale` times.

    Raises ValueError for no video, a malformed one, or fewer than one frame.
    """
    if not videos:
        raise ValueError("a contact sheet needs at least one video")
    if frames < 1:
        raise ValueError(f"a contact sheet shows at least one frame per video, got {frames}")
    rows = [_row(label, to_bytes(video), frames, upscale) for label, video in videos.items()]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(path, format="png")


def _row(label: str, video: NDArray[np.uint8], frames: int, upscale: int) -> Image.Image:
    index = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    shown = _enlarged(video[index], upscale)
    count, height, width, _ = shown.shape
    row = Image.new("RGB", (count * (width + GAP) - GAP, height + LABEL_HEIGHT + GAP), "white")
    ImageDraw.Draw(row).text((2, 2), label, fill="black", font=ImageFont.load_default(size=11))
    for position, frame in enumerate(shown):
        row.paste(Image.fromarray(frame), (position * (width + GAP), LABEL_HEIGHT))
    return row


def _enlarged(frames: NDArray[np.uint8], upscale: int) -> NDArray[np.uint8]:
    if upscale < 1:
        raise ValueError(f"upscale must be at least 1, got {upscale}")
    return frames.repeat(upscale, axis=1).repeat(upscale, axis=2)
