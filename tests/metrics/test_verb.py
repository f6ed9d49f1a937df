"""`mccompile metrics` on files and folders that it reads itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mccompile.generate.video import write_mp4
from mccompile.metrics import read_clip
from tests.cli.conftest import Shell, shell  # noqa: F401  # the fixture

FRAMES = np.linspace(0, 1, 12 * 32 * 32 * 3).reshape(12, 32, 32, 3)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The same moving ramp twice: as mp4, and as a folder of frames whose numbers have no leading zeros."""
    write_mp4(tmp_path / "a.mp4", FRAMES, 8)
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(FRAMES):
        Image.fromarray((frame * 255).round().astype(np.uint8)).save(folder / f"frame{index}.png")
    return tmp_path / "a.mp4", folder


def test_a_file_and_a_folder_hold_one_video(pair: tuple[Path, Path]) -> None:
    movie, folder = (read_clip(p) for p in pair)
    assert movie.rate == 8
    assert folder.rate is None
    assert np.allclose(folder.frames, FRAMES, atol=0.5 / 255 + 1e-6)
    assert np.abs(movie.frames - folder.frames).mean() < 0.02


def test_the_lines(pair: tuple[Path, Path], shell: Shell) -> None:  # noqa: F811
    result = shell("metrics", pair[1], pair[0])
    assert result.status == 0, result.err
    names = [line.split("  ")[0] for line in result.out.splitlines()]
    assert names == [
        "PSNR", "SSIM", "MS-SSIM", "PSNR static", "PSNR moving", "flicker", "sharpness", "worst frame",
    ]  # fmt: skip
    assert float(result.out.split()[1]) > 30


def test_json_and_equal_videos(pair: tuple[Path, Path], shell: Shell) -> None:  # noqa: F811
    result = shell("metrics", "--json", pair[0], pair[0])
    found = json.loads(result.out)
    assert found["psnr"] is None
    assert found["per_frame"] == [None] * 12
    assert found["ssim"] == pytest.approx(1.0)


def test_what_does_not_fit(pair: tuple[Path, Path], tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    write_mp4(tmp_path / "short.mp4", FRAMES[:5], 8)
    result = shell("metrics", pair[0], tmp_path / "short.mp4")
    assert (result.status, result.out) == (2, "")
    assert "error[MC0732]: the videos differ in length: 12 frames and 5 frames" in result.err
