"""Videos written are videos read."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mccompile.generate.video import to_bytes, write_contact_sheet, write_mp4


def moving_bar(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A white bar that moves by four pixels a frame."""
    video = np.zeros((frames, height, width, 3), np.float32)
    for index in range(frames):
        video[index, :, 4 * index : 4 * index + 8] = 1.0
    return video


def read(path: Path) -> np.ndarray:
    """All frames of an mp4, uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("upscale", [1, 3])
def test_mp4_holds_every_frame(tmp_path: Path, upscale: int) -> None:
    """Frame count, size, rate and content survive the codec."""
    path, video = tmp_path / "bar.mp4", moving_bar()
    write_mp4(path, video, fps=12, upscale=upscale)
    seen = read(path)
    expected = to_bytes(video).repeat(upscale, 1).repeat(upscale, 2)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).mean() < 6
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    """An odd side grows by one pixel instead of failing."""
    write_mp4(tmp_path / "odd.mp4", moving_bar(height=31, width=47), fps=8)
    assert read(tmp_path / "odd.mp4").shape == (9, 32, 48, 3)


def test_bytes_pass_unchanged() -> None:
    """uint8 is taken as it is; floats are clipped."""
    values = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    assert np.array_equal(to_bytes(values), values)
    assert to_bytes(np.full((1, 1, 1, 3), 2.0)).max() == 255


@pytest.mark.parametrize(
    ("video", "complaint"),
    [
        (np.zeros((4, 8, 8)), "frames, height, width, 3"),
        (np.zeros((0, 8, 8, 3)), "no empty side"),
        (np.zeros((2, 8, 8, 3), np.int64), "uint8 or floating"),
        (np.full((2, 8, 8, 3), np.nan), "not finite"),
    ],
)
def test_malformed_videos_are_refused(tmp_path: Path, video: np.ndarray, complaint: str) -> None:
    """The complaint names what is wrong, and no file appears."""
    with pytest.raises(ValueError, match=complaint):
        write_mp4(tmp_path / "x.mp4", video, fps=8)
    assert not (tmp_path / "x.mp4").exists()


@pytest.mark.parametrize(("fps", "upscale"), [(0, 1), (8, 0)])
def test_senseless_settings_are_refused(tmp_path: Path, fps: int, upscale: int) -> None:
    """A rate or scale below one has no meaning."""
    with pytest.raises(ValueError, match="at least 1"):
        write_mp4(tmp_path / "x.mp4", moving_bar(), fps=fps, upscale=upscale)


def test_contact_sheet_shows_rows_in_order(tmp_path: Path) -> None:
    """One row per video, in the mapping's order, with pixels of the frames and ink of the label."""
    dark, light = np.zeros((5, 16, 16, 3)), np.full((5, 16, 16, 3), 0.5)
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, {"vanilla": dark, "motioncache": light}, frames=4, upscale=2)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    half = sheet.shape[0] // 2
    assert sheet.shape[1] == 4 * (32 + 2) - 2
    assert (sheet[half - 20, 16] == 0).all()
    assert (sheet[-10, 16] == 128).all()
    assert sheet[half : half + 14].min() < 128, "the second row has no label"


def test_contact_sheet_needs_a_video(tmp_path: Path) -> None:
    """An empty mapping is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one video"):
        write_contact_sheet(tmp_path / "sheet.png", {})
