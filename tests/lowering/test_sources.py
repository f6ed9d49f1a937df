"""How a source is brought to samples, chunks, frames, places and channels, whatever its own layout is."""

from __future__ import annotations

import pytest
import torch

from mccompile.capture.part import Input, Modulated, Shared
from mccompile.ir import Granularity
from mccompile.lowering import sources
from mccompile.lowering.slots import (
    ChosenWay,
    Count,
    DecidedBy,
    Host,
    Late,
    LikeAnchors,
    Mask,
    Now,
    Params,
    Past,
    Places,
    Running,
    Slot,
    Tail,
    identifier,
)
from mccompile.lowering.sources import Located, to_cells

B, G, F, H, W, C = 2, 3, 2, 2, 4, 5
CELLS = torch.arange(B * G * F * H * W * C).reshape(B, G, F, H * W, C)
ACCOUNT = torch.zeros(B, G, F, H * W)


@pytest.mark.parametrize("axis", [1, 2])
def test_tokens_are_in_the_order_of_frames(axis: int) -> None:
    value = CELLS.flatten(1, 3).movedim(1, axis)
    assert torch.equal(to_cells(value, Located("embedded", Input("x"), "tokens", axis, (1, 1, 1)), ACCOUNT), CELLS)


def test_a_value_of_the_whole_call_does_not_vary() -> None:
    value = torch.arange(2 * 6).reshape(2, 3, 2)
    found = to_cells(value, Located("modulation", Shared("m"), "constant", 0, (1, 1, 1)), ACCOUNT)
    assert torch.equal(found, value.reshape(2, 1, 1, 1, 6))


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 3)])
def test_pixels_of_a_patch_are_its_channels(patch: tuple[int, int, int]) -> None:
    pt, ph, pw = patch
    latent = torch.arange(B * C * G * F * pt * H * ph * W * pw).reshape(B, C, G * F * pt, H * ph, W * pw)
    found = to_cells(latent, Located("latent", Input("x"), "latent", 2, patch), ACCOUNT)
    assert found.shape == (B, G, F, H * W, C * pt * ph * pw)
    for g, f, y, x in ((0, 0, 0, 0), (1, 1, 1, 2), (G - 1, F - 1, H - 1, W - 1)):
        t = (g * F + f) * pt
        own = latent[1, :, t : t + pt, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw]
        assert torch.equal(found[1, g, f, y * W + x], own.flatten())


SHOWN = {
    "input:x": Input("x"), "shared:m": Shared("m"), "stream": sources.VideoStream(), "probe": sources.Probe(),
    "probed": sources.ProbeOutput(), "modulated": Modulated(), "what enters the region": sources.RegionInput(),
    "output": sources.RegionOutput(), "result:4": sources.ModelOutput(4), "y less x": sources.BlockStreams("x", "y"),
}  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_where_a_source_lies_can_be_said(text: str) -> None:
    assert sources.shown(SHOWN[text]) == text


NAMES: dict[str, Slot] = {
    "host": Host(), "params": Params(), "places": Places(), "mask": Mask(), "measured": DecidedBy(), "way": ChosenWay(),
    "now__latent": Now("latent"), "alike__latent__3": LikeAnchors("latent", 3), "state__streak": Count("streak"),
    "state__account": Count("account"), "state__account__debt": Count("account", "debt"),
    "past__1__2__frame": Past(1, 2, Granularity.FRAME), "running__0__2": Running(0, 2), "tail__latent": Tail("latent"),
    "late__motion": Late("motion"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_slot_is_a_placeholder_of_its_name(name: str) -> None:
    assert identifier(NAMES[name]) == name
