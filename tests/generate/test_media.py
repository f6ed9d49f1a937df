"""What a generation starts from: images, a video and prompts in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mccompile.generate.errors import OptionRefused
from mccompile.generate.media import read_image, read_prompts, read_video
from mccompile.generate.run import Settings, call_arguments
from mccompile.generate.video import write_mp4
from mccompile.pipelines.probe import record_calls
from tests.pipes.wan import CASES


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    write_mp4(tmp_path / "in.mp4", np.zeros((3, 32, 48, 3), np.float32), 8)
    return tmp_path / "in.mp4"


def image_pipe() -> object:
    return next(case for case in CASES if case.name == "WanImageToVideoPipeline").make()


def test_files_become_arguments(tmp_path: Path, movie: Path) -> None:
    Image.new("RGBA", (8, 6)).save(tmp_path / "in.png")
    made = call_arguments(image_pipe(), Settings(prompt="p", image=str(tmp_path / "in.png")))
    image = made["image"]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert [frame.size for frame in read_video(str(movie))] == [(48, 32)] * 3


def test_an_argument_that_the_pipeline_does_not_have_is_named_by_its_option(movie: Path) -> None:
    with pytest.raises(OptionRefused, match="`--video` cannot be used here"):
        call_arguments(image_pipe(), Settings(prompt="p", video=str(movie)))


def test_prompts_are_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\n  two \n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ("one", "two")


@pytest.mark.parametrize(
    ("content", "read", "why"),
    [
        (b"no image", lambda path: read_image(str(path)), "cannot be read"),
        (b"no video", lambda path: read_video(str(path)), "cannot be read"),
        (b"\xff\xfe\xff", read_prompts, "cannot be read"),
        (b"\n\n", read_prompts, "has no prompt"),
        (None, lambda path: read_image(str(path)), "No such file"),
        (None, lambda path: read_video(str(path)), "No such file"),
        (None, read_prompts, "No such file"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, content: bytes | None, read: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionRefused, match=why):
        read(path)


class Painted(nn.Module):
    """A transformer of images; its forward is never reached."""

    config: ClassVar[dict[str, object]] = {"patch_size": 2}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        raise AssertionError


class FromImage:
    """A pipeline that does not run without an image."""

    def __init__(self) -> None:
        self.transformer: nn.Module = Painted()

    def set_progress_bar_config(self, **_: object) -> None:
        """Has no bar."""

    def __call__(self, image: Image.Image, prompt: str = "", height: int = 8, width: int = 8) -> object:
        assert (image.width, image.height) == (width, height)
        return self.transformer(hidden_states=torch.zeros(1, 4, height // 8, width // 8))


def test_a_pipeline_that_needs_an_image_is_recorded_without_one() -> None:
    """The probe gives it a grey one: a pipeline that takes images is compiled like any other."""
    shapes = [call["hidden_states"].shape for call in record_calls(FromImage(), {})]  # type: ignore[attr-defined]
    assert shapes == [torch.Size([1, 4, 6, 14]), torch.Size([1, 4, 10, 22])]
