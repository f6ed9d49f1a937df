"""Blocks that attend within a frame and along time in turn (Latte): rows of them run alone, as a plain model's do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CapturedModel, capture, flat_inputs, run_full
from mccompile.capture.types import Along, TokenGrid
from mccompile.capture.verify import gathered_rows
from tests.capture.laws import run_partial, selections, streams_of

DIM, HEADS, TEXT = 8, 2, 3
Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Kept = tuple[Tensor, Tensor]  # which tokens are computed, and what entered the block when the others last were


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, attend: Attend, place: nn.Module) -> None:
        super().__init__()
        self.qkv, self.out, self.q = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.attend, self.place = attend, place

    def projected(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.qkv(self.place(F.layer_norm(x, (DIM,)) * (1 + scale)))

    def forward(self, x: Tensor, scale: Tensor, text: Tensor | None, kept: Kept | None = None) -> Tensor:
        qkv = self.projected(x, scale)
        if kept is not None:
            qkv = torch.where(kept[0], qkv, self.projected(kept[1], scale))
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        if text is not None:
            seen = F.scaled_dot_product_attention(heads(self.q(x)), heads(text), heads(text))
            x = x + seen.transpose(1, 2).flatten(2)
        return x + self.out(x).tanh()


def turns(frames: int) -> Tensor:
    return (torch.arange(frames)[:, None] * torch.linspace(0.1, 1, DIM, dtype=torch.float64)).cos()


class Shifted(nn.Module):
    """Each token reads the one before it, in its frame or at its place: nothing of it runs on rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 1)


class Written(nn.Module):
    """Writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.mul_(2)
        return x


class Axial(nn.Module):
    """by_frame: whether each frame has a time of its own."""

    def __init__(self, attend: Attend, place: nn.Module, by_frame: bool) -> None:
        super().__init__()
        self.embed, self.time, self.by_frame = nn.Conv2d(4, DIM, 2, 2), nn.Linear(1, DIM), by_frame
        self.spatial, self.temporal = (nn.ModuleList(Block(attend, place) for _ in range(2)) for _ in range(2))

    def given(self, t: Tensor, text: Tensor, frames: int, places: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the blocks within frames scale by, and those along time; the text for each frame."""
        texts = text[:, None].expand(-1, frames, -1, -1).reshape(-1, *text.shape[1:])
        if self.by_frame:
            scale = self.time(t[..., None])
            return scale.flatten(0, 1)[:, None], scale.repeat_interleave(places, 0), texts
        scale = self.time(t[:, :1])
        return scale.repeat_interleave(frames, 0)[:, None], scale.repeat_interleave(places, 0)[:, None], texts

    def forward(self, hidden_states: Tensor, t: Tensor, text: Tensor) -> Tensor:
        count, _, frames, height, width = hidden_states.shape
        x = self.embed(hidden_states.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        within, over, texts = self.given(t, text, frames, x.shape[1])
        for i, (spatial, temporal) in enumerate(zip(self.spatial, self.temporal, strict=True)):
            x = spatial(x, within, texts)
            x = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
            x = temporal(x + turns(frames) if i == 0 else x, over, None)
            x = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)
        return x.unflatten(0, (count, frames)).unflatten(2, (height // 2, width // 2)).movedim(-1, 1)


class Parting(nn.Module):
    """A block that takes its tokens apart itself, and puts them together again."""

    def __init__(self, inner: Block, along_time: bool) -> None:
        super().__init__()
        self.inner, self.along_time = inner, along_time

    def forward(self, x: Tensor, frames: int, scale: Tensor, text: Tensor | None) -> Tensor:
        x = x.unflatten(1, (frames, x.shape[1] // frames))
        x = x.transpose(1, 2) if self.along_time else x
        x = self.inner(x.flatten(0, 1), scale, text).unflatten(0, x.shape[:2])
        return (x.transpose(1, 2) if self.along_time else x).flatten(1, 2)


class Inside(Axial):
    """Its stream has all tokens (Open-Sora)."""

    def __init__(self, attend: Attend, place: nn.Module, by_frame: bool) -> None:
        super().__init__(attend, place, by_frame)
        self.spatial, self.temporal = (
            nn.ModuleList(Parting(block, along_time) for block in blocks)  # type: ignore[arg-type]
            for blocks, along_time in ((self.spatial, False), (self.temporal, True))
        )

    def forward(self, hidden_states: Tensor, t: Tensor, text: Tensor) -> Tensor:
        _, _, frames, height, width = hidden_states.shape
        x = self.embed(hidden_states.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames))
        x = x.flatten(3).transpose(2, 3).flatten(1, 2)
        within, over, texts = self.given(t, text, frames, x.shape[1] // frames)
        for i, (spatial, temporal) in enumerate(zip(self.spatial, self.temporal, strict=True)):
            x = spatial(x, frames, within, texts)
            x = (x.unflatten(1, (frames, -1)) + turns(frames)[:, None]).flatten(1, 2) if i == 0 else x
            x = temporal(x, frames, over, None)
        return x.unflatten(1, (frames, height // 2, width // 2)).movedim(-1, 1)


def call(samples: int, frames: int, height: int, width: int) -> dict[str, Tensor]:
    sizes = (samples, 4, frames, height, width), (samples, frames), (samples, TEXT, DIM)
    return dict(zip(("hidden_states", "t", "text"), (torch.randn(s, dtype=torch.float64) for s in sizes), strict=True))


@cache
def captured(
    attend: Attend = F.scaled_dot_product_attention, place: type[nn.Module] = nn.Identity, by_frame: bool = False,
    frames: tuple[int, int] = (3, 5), kind: type[Axial] = Axial,
) -> tuple[Axial, CapturedModel]:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(attend, place(), by_frame).eval().double().requires_grad_(False)
        return model, capture(model, call(2, frames[0], 4, 6), call(1, frames[1], 6, 10))


DESIGNS: list[dict[str, object]] = [
    {}, {"by_frame": True}, {"attend": by_hand, "frames": (4, 4), "by_frame": True}, {"kind": Inside},
    {"place": Shifted},
]  # fmt: skip
NAMES = ["plain", "by_frame", "fixed_by_hand", "inside", "shifted"]


@pytest.mark.parametrize("design", DESIGNS, ids=NAMES)
def test_tokens_of_all_frames_lie_together(design: dict[str, object]) -> None:
    model, found = captured(**design)  # type: ignore[arg-type]
    assert found.grid == TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2))
    assert found.refusals == ()
    assert {port.rows for port in found.streams} == {"video"}
    given = call(3, 4, 8, 6)
    run = run_full(found, flat_inputs(found, given))
    # Not bit for bit: where a machine's products of matrices split their rows depends on how many there are.
    torch.testing.assert_close(run.outputs[0], model(**given), rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("design", DESIGNS[:4], ids=NAMES[:4])  # what `Shifted` reads besides is kept too
def test_selected_rows_are_those_of_a_plain_block_with_what_was_kept(design: dict[str, object]) -> None:
    model, found = captured(**design)  # type: ignore[arg-type]
    frames, places = 4, 6
    given = call(1, frames, 4, 6)
    inputs = flat_inputs(found, given)
    run = run_full(found, inputs)
    within, over, texts = model.given(given["t"], given["text"], frames, places)
    for site in found.blocks:
        (before,) = streams_of(run, site)
        now = torch.randn(before.shape, dtype=torch.float64)
        block = model.get_submodule(site.path)
        block = block.inner if isinstance(block, Parting) else block
        along_time = site.path.startswith("temporal")

        def apart(x: Tensor, along_time: bool = along_time) -> Tensor:
            x = x.unflatten(1, (frames, places))
            return (x.transpose(1, 2) if along_time else x).flatten(0, 1)

        moved = turns(frames) if site.path == "temporal.0" else 0
        for index in selections(frames * places):
            chosen = torch.zeros(1, frames * places, 1, dtype=torch.bool)
            chosen[:, index] = True
            rows = gathered_rows(found, inputs, index)
            (made,) = run_partial(found, site, [now], rows, [b.clone() for b in run.buffers[site.index]])
            kept = apart(chosen), apart(before) + moved
            wanted = block(apart(now) + moved, *((over, None) if along_time else (within, texts)), kept)
            wanted = wanted.unflatten(0, (1, -1))
            wanted = (wanted.transpose(1, 2) if along_time else wanted).flatten(1, 2)
            torch.testing.assert_close(made, wanted[:, index], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Axial, Inside])
def test_all_but_the_attention_runs_on_rows(kind: type[Axial]) -> None:
    """Of the operators that are computed over all tokens none is a product with weights."""
    _, found = captured(**({} if kind is Axial else {"kind": kind}))  # type: ignore[arg-type]
    for kind in found.kinds:
        assert kind.partial is not None
        whole = [n for n in kind.partial.graph.nodes if n.target is torch.ops.aten.index_select.default]
        assert len(whole) == 1
        below = list(whole[0].all_input_nodes)
        while below:
            assert below[-1].target is not torch.ops.aten.linear.default
            node = below.pop()
            below += [] if node.target is torch.ops.aten.index_copy_.default else node.all_input_nodes


def test_what_is_the_same_for_all_frames_is_made_once_a_sample() -> None:
    _, found = captured()
    given = [port for port in found.shared if port.depends & {"text", "t"}]
    assert len(given) == 3
    assert all(port.batch == Along(0) and not port.rows for port in given)


def test_values_for_each_frame_are_gathered_by_frame() -> None:
    _, found = captured(by_frame=True)
    assert "frame" in {port.rows for port in found.sources if port.depends == {"t"}}


def test_blocks_that_write_in_place_keep_their_frames_apart() -> None:
    model, found = captured(place=Written)
    assert found.grid == TokenGrid("hidden_states", (2, 3, 4), (1, 2, 2), apart=True)
    given = call(3, 4, 8, 6)
    assert torch.equal(run_full(found, flat_inputs(found, given)).outputs[0], model(**given))  # type: ignore[arg-type]
