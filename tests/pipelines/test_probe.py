"""How the two example calls of a pipeline are asked for: sizes that it accepts, by its names for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mccompile import api
from mccompile.capture.errors import CaptureError
from mccompile.pipelines.errors import ProbeFailed, ProcessorsExchanged
from mccompile.pipelines.finding import driver_for
from mccompile.pipelines.probe import record_calls
from mccompile.runtime.remembers import runs_at


class Model(nn.Module):
    config = {"patch_size": 1}  # noqa: RUF012  # as diffusers has it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@dataclass
class Picky:
    """A pipeline that calls its frames `frames` and accepts heights and widths that are multiples of `pixels`."""

    pixels: int
    transformer: nn.Module = field(default_factory=Model)

    def set_progress_bar_config(self, **_: object) -> None:
        pass

    def __call__(self, height: int = 1, width: int = 1, frames: int = 1, use_resolution_binning: bool = True) -> None:
        if height % self.pixels or width % self.pixels:
            raise ValueError(f"{height} x {width} are no multiples of {self.pixels}")
        size = (704, 1280) if use_resolution_binning else (height, width)
        self.transformer(torch.zeros(1, frames, *(n // 8 for n in size)))


def shapes(pipe: Picky) -> list[tuple[int, ...]]:
    found = [call["x"] for call in record_calls(pipe, {})]
    return [tuple(x.shape) for x in found if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("pixels", [16, 32, 64])
def test_sizes_are_taken_from_what_the_pipeline_accepts(pixels: int) -> None:
    side = pixels // 8
    assert shapes(Picky(pixels)) == [(1, 25, 3 * side, 7 * side), (1, 33, 5 * side, 11 * side)]


def test_a_pipeline_that_accepts_no_size_is_refused_with_its_own_words() -> None:
    with pytest.raises(ProbeFailed, match="48 x 112 are no multiples of 1000"):
        record_calls(Picky(1000), {})


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class Patched(Model):
    """A small transformer, whose patches are 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(1, 8, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([Attending(), Attending()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x[:, None]).flatten(2).transpose(1, 2)
        for block in self.blocks:
            y = block(y)
        return y


class Coarse(Picky):
    """Runs its model on a quarter of the height and width, as a first stage of a pyramid does; or on nothing at all."""

    def __call__(self, height: int = 1, width: int = 1, frames: int = 1) -> None:  # type: ignore[override]
        self.transformer(torch.zeros(1, 1 + frames // 8, height // 32, width // 32))


def test_calls_at_which_the_model_itself_does_not_run_are_recorded_again_at_larger_sizes() -> None:
    pipe = Coarse(16, Patched().eval().requires_grad_(False))
    assert not runs_at(pipe.transformer, record_calls(pipe, {})[0])  # 48 rows are one row of the first stage
    made = api.prepare(pipe)
    assert [call["x"].shape[-2:] for call in made.calls] == [(6, 14), (10, 22)]  # type: ignore[union-attr]
    assert len(made.model.blocks) == 2


@dataclass
class Counted(Picky):
    """Notes the heights that it is asked for."""

    heights: list[int] = field(default_factory=list)

    def __call__(self, height: int = 1, width: int = 1, frames: int = 1) -> None:  # type: ignore[override]
        self.heights.append(height)
        super().__call__(height, width, frames, False)


def test_a_model_that_runs_is_not_recorded_again() -> None:
    """What capture refuses stands: at other sizes it would be refused too."""
    pipe = Counted(8, Model())
    with pytest.raises(CaptureError):
        api.prepare(pipe)
    assert pipe.heights == [48, 80]


class Partitioned(Picky):
    """Its frames are fixed by another argument (AnyFlow-FAR)."""

    def __call__(self, height: int = 1, width: int = 1, num_frames: int = 81, parts: int = 1) -> None:  # type: ignore[override]
        if parts != num_frames:
            raise ValueError(f"{parts} parts are not {num_frames} frames")
        self.transformer(torch.zeros(1, num_frames, height // 8, width // 8))


def test_frames_that_another_argument_fixes_are_those_of_the_call() -> None:
    found = [call["x"] for call in record_calls(Partitioned(16), {"parts": 5, "num_frames": 5, "height": 1000})]
    assert [tuple(x.shape) for x in found if isinstance(x, torch.Tensor)] == [(1, 5, 6, 14), (1, 5, 10, 22)]
    with pytest.raises(ProbeFailed, match="5 parts are not 25 frames"):
        record_calls(Partitioned(16), {"parts": 5, "num_frames": 6})


class Encoded(Picky):
    """Refuses a prompt in words beside an encoded one (LTX-2 DFR)."""

    def __call__(  # type: ignore[override]
        self, prompt: str | None = None, prompt_embeds: object = None, height: int = 1, width: int = 1
    ) -> None:
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give a prompt in words, or encoded")
        self.transformer(torch.zeros(1, 1, height // 8, width // 8))


@pytest.mark.parametrize("given", [{}, {"prompt_embeds": torch.zeros(1, 2)}, {"prompt_embeds": None}])
def test_a_prompt_is_made_up_only_where_none_is_given(given: dict[str, object]) -> None:
    found = [call["x"] for call in record_calls(Encoded(16), given)]
    assert [tuple(x.shape) for x in found if isinstance(x, torch.Tensor)] == [(1, 1, 6, 14), (1, 1, 10, 22)]


class Tiled(Model):
    config = {"patch_size": 1, "tile_sizes": ((64, 64), (64, 128), (128, 64))}  # noqa: RUF012


class Enlarging(Picky):
    """Enlarges a video to a tile, and has no other size (Kandinsky 6 SR)."""

    def __call__(  # type: ignore[override]
        self, video: list[Image.Image], resolution_scale: float = 2.25, output_type: str = "pil"
    ) -> None:
        width, height = (int(n * resolution_scale) for n in video[0].size)
        if (height, width) not in self.transformer.config["tile_sizes"]:
            raise ValueError(f"{height} x {width} is no tile")
        self.transformer(torch.zeros(1, len(video), height // 8, width // 8))


def test_a_pipeline_that_goes_tile_by_tile_is_asked_for_two_tiles() -> None:
    """Height, width and frames differ; the runs that prove something have other frames."""
    pipe = Enlarging(1, Tiled())
    driver = driver_for(pipe)
    found = [call["x"] for call in driver.record(pipe, {"video": [], "resolution_scale": 4})]
    assert [tuple(x.shape) for x in found if isinstance(x, torch.Tensor)] == [(1, 9, 8, 16), (1, 17, 16, 8)]
    runs = [run["video"] for run in driver.small_runs(pipe, {})]
    assert [(len(run), run[0].size) for run in runs if isinstance(run, list)] == [(13, (64, 32)), (21, (32, 64))]
    declared = driver.declared(pipe, {}).call
    assert declared is not None
    assert declared["x"].shape == (1, 9, 8, 16)  # type: ignore[attr-defined]


class Attention(Model):
    """It has an attention processor, as diffusers' attentions do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Model()
        self.inner.processor = self.own = object()  # type: ignore[assignment]


class Perturbing(Picky):
    """Puts another attention processor into its transformer before the loop, and takes it out after it (PAG)."""

    def __call__(self, height: int = 1, width: int = 1, frames: int = 1) -> None:  # type: ignore[override]
        own = self.transformer.inner.processor
        self.transformer.inner.processor = 3
        super().__call__(height, width, frames)
        self.transformer.inner.processor = own


def test_a_pipeline_that_exchanges_processors_is_refused_and_the_model_keeps_its_own() -> None:
    pipe = Perturbing(16, Attention())
    with pytest.raises(ProcessorsExchanged, match=r"MC0728.*`int` into `inner`"):
        record_calls(pipe, {})
    assert pipe.transformer.inner.processor is pipe.transformer.own
