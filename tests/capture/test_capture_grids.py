"""Grids beyond a latent of three sizes that vary: images, fixed frames, flat latents that are told sizes or places."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CapturedModel, OneFrame, PlacedGrid, TokenGrid, ToldGrid, capture
from mccompile.capture.places import counts_placed

DIM = 12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q * table, k * table, v)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def run(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, table)
        return x


class Image(Base):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, DIM, 2, 2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.embed(latent).flatten(2).transpose(1, 2)
        return self.run(x, torch.ones_like(x[..., :1]))


class Video(Base):
    """Frames before channels, if asked for."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv3d(4, DIM, (1, 2, 2), (1, 2, 2)), first

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.embed(latent.transpose(1, 2) if self.first else latent).flatten(2).transpose(1, 2)
        return self.run(x, torch.ones_like(x[..., :1]))


class Flat(Base):
    """Tokens come flat; a table is made from sizes, of columns for frames, rows and columns of the grid."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.mixes = mixes

    def forward(self, latent: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        sizes = (frames, height, width)
        angles = [torch.arange(s) / s for s in sizes]
        if self.mixes:  # a column of two axes proves nothing
            angles[0] = angles[0][:, None, None] + angles[1][:, None]
        grids = torch.broadcast_tensors(
            angles[0] if self.mixes else angles[0][:, None, None], angles[1][:, None], angles[2]
        )
        table = torch.stack([g.flatten() for g in grids], -1).repeat(1, DIM // 3)
        return self.run(latent, table)


class Placed(Base):
    """Tokens come flat, each with a position [frame, row, column]; the three numbers come first, if asked for."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last

    def forward(self, latent: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        places = places.transpose(-1, -2) if self.last else places
        return self.run(latent, torch.cat([places / 10] * (DIM // 3), -1))


def captured(model: nn.Module, *calls: dict[str, object]) -> CapturedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(model.eval().requires_grad_(False), *calls)


def latents(*shapes: tuple[int, ...]) -> list[dict[str, object]]:
    return [{"latent": torch.randn(1, *shape)} for shape in shapes]


def test_an_image_is_one_frame() -> None:
    found = captured(Image(), *latents((4, 6, 8), (4, 10, 14)))
    assert found.grid == TokenGrid("latent", (None, 2, 3), (1, 2, 2))
    assert found.grid.of(torch.Size((1, 4, 12, 16))) == (1, 6, 8)


@pytest.mark.parametrize("first", [False, True])
def test_the_number_of_frames_may_be_fixed(first: bool) -> None:
    sizes = [(3, 4, *s) if first else (4, 3, *s) for s in ((6, 8), (10, 14))]
    found = captured(Video(first), *latents(*sizes))
    assert found.grid == TokenGrid("latent", (1 if first else 2, 3, 4), (1, 2, 2))


@pytest.mark.parametrize("first", [False, True])
def test_height_and_width_may_be_fixed(first: bool) -> None:
    """As where a condition image has said them."""
    sizes = [(f, 4, 6, 8) if first else (4, f, 6, 8) for f in (3, 5)]
    found = captured(Video(first), *latents(*sizes))
    assert found.grid == TokenGrid("latent", (1 if first else 2, 3, 4), (1, 2, 2))


def told(*sizes: tuple[int, int, int]) -> list[dict[str, object]]:
    return [
        {"latent": torch.randn(1, f * h * w, DIM), "frames": f, "height": h, "width": w} for f, h, w in sizes
    ]


def test_sizes_of_the_call_are_proved_on_the_models_table() -> None:
    found = captured(Flat(), *told((3, 4, 6), (5, 6, 8)))
    assert found.grid == ToldGrid("latent", ("frames", "height", "width"))
    assert found.grid.of_call({"frames": 2, "height": 3, "width": 4}) == (2, 3, 4)
    assert captured(Flat(mixes=True), *told((3, 4, 6), (5, 6, 8))).grid is None


@pytest.mark.parametrize(("second_frame", "grid"), [(0.0, OneFrame("latent", 1, "places")), (1.0, None)])
def test_positions_tell_an_image_from_a_video(second_frame: float, grid: OneFrame | None) -> None:
    calls = []
    for h, w in ((4, 6), (6, 8)):
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(h).float(), torch.arange(w).float())
        places[h * w // 2 :, 0] = second_frame
        calls.append({"latent": torch.randn(1, h * w, DIM), "places": places})
    assert captured(Placed(), *calls).grid == grid


def places(frames: int, height: int, width: int) -> torch.Tensor:
    """[tokens, 3] of a video at 25 frames a second: seconds, and the middles of rows and columns in pixels."""
    return torch.cartesian_prod(torch.arange(frames) / 25, torch.arange(height) * 32 + 16.0, torch.arange(width) * 32.0)


@pytest.mark.parametrize("last", [False, True])
def test_positions_tell_a_video(last: bool) -> None:
    calls = []
    for size in ((3, 4, 6), (5, 6, 8)):
        rows = places(*size)[None]
        calls.append({"latent": torch.randn(1, rows.size(1), DIM), "places": rows.mT if last else rows})
    found = captured(Placed(last), *calls)
    assert found.grid == PlacedGrid("latent", "places", last)
    assert not found.refusals
    rows = places(2, 3, 4).expand(2, 24, 3)
    assert found.grid.of_call({"places": rows.mT if last else rows}) == (2, 3, 4)


def test_both_ends_of_positions_tell_a_video() -> None:
    """As LTX-2 is given them: [samples, 3, tokens, 2]."""
    calls = []
    for size in ((3, 4, 6), (5, 6, 8)):
        ends = both_ends(*size)
        calls.append({"latent": torch.randn(1, ends.size(2), DIM), "places": ends})
    found = captured(Ended(True), *calls)
    assert found.grid == PlacedGrid("latent", "places", last=True)
    assert not found.refusals
    assert found.grid.of_call({"places": both_ends(2, 3, 4)}) == (2, 3, 4)
    front = torch.cat([both_ends(1, 3, 4), both_ends(2, 3, 4)], 2)
    assert found.grid.of_call({"places": front}) == (1, 1, 36)


def both_ends(frames: int, height: int, width: int) -> torch.Tensor:
    starts = places(frames, height, width).T[None, ..., None]
    return torch.cat([starts, starts + torch.tensor([1 / 25, 32, 32])[:, None, None]], -1)


class Ended(Placed):
    """Is given both ends of each token."""

    def forward(self, latent: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return super().forward(latent, places.mean(-1))


def test_tokens_beside_the_video_are_no_grid() -> None:
    """A keyframe in front of the video, samples in other grids, rows of several lengths: none is taken apart."""
    video = places(3, 4, 6)
    assert counts_placed(video, last=False) == (3, 4, 6)
    assert counts_placed(torch.cat([video[24:48], video]), last=False) is None
    assert counts_placed(torch.stack([video, video * 2 + 1]), last=False) == (3, 4, 6)
    assert counts_placed(torch.stack([video, places(3, 6, 4)]), last=False) is None
    assert counts_placed(video[:-1], last=False) is None
    assert counts_placed(video.flip(0)[:, [1, 0, 2]], last=False) is None
    front = {"places": torch.cat([video[24:48], video])}
    assert PlacedGrid("latent", "places", last=False).of_call(front) == (1, 1, 96)


def test_a_reference_behind_the_video_is_no_part_of_its_grid() -> None:
    """It begins anew; where frames have no ends, one that is later could be the next frame, cut off."""
    calls: list[dict[str, object]] = []
    for f, h, w in ((3, 4, 6), (4, 6, 10)):
        rows = torch.cat([places(f, h, w), places(f, h // 2, w // 2) * torch.tensor([1, 2, 2])])[None]
        calls.append({"latent": torch.randn(1, rows.size(1), DIM), "places": rows})
    found = captured(Placed(), *calls)
    assert found.grid == PlacedGrid("latent", "places", last=False)
    assert found.grid.of_call(calls[0]) == (3, 4, 6)
    assert found.grid.behind(calls[0]) == 3 * 2 * 3
    video = places(3, 4, 6)
    assert counts_placed(torch.cat([video, video[:24], video[:5]]), last=False) == (3, 4, 6)
    assert counts_placed(torch.cat([video, places(4, 4, 6)[72:90]]), last=False) is None


def test_a_keyframe_that_does_not_begin_where_the_video_ends_lies_behind_it() -> None:
    """Both ends of each token are given: [begin, end) of a frame in seconds."""
    video = both_ends(3, 4, 6)
    later = video[:, :, -24:].clone()
    later[:, 0] += torch.tensor([0.5, 0.5])
    follows = video[:, :, -24:].clone()
    follows[:, 0] = follows[:, 0, :, 1:] + torch.tensor([0.0, 1 / 25])
    assert counts_placed(torch.cat([video, later, video], 2), last=True) == (3, 4, 6)
    assert counts_placed(torch.cat([video, follows, video], 2), last=True) == (4, 4, 6)


def test_positions_that_change_in_place_are_read_again() -> None:
    rows = places(3, 4, 6)
    assert counts_placed(rows, last=False) == (3, 4, 6)
    rows[24:, 0] = -1
    assert counts_placed(rows, last=False) is None
