"""Masks that blocks build of shared values alone (Chroma): made once before the blocks, so rows of them are taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import CallError, CapturedModel, capture, flat_inputs, run_full
from mccompile.capture.verify import close

DIM, TEXT = 8, 3


class Block(nn.Module):
    """Text behind the video; a token sees another one where both are seen."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.qkv, self.own = nn.Linear(DIM, 3 * DIM), own

    def forward(self, x: torch.Tensor, text: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(torch.cat([x, text], 1)).chunk(3, -1)
        if self.own:
            seen = seen & (q.sum(-1) < 100)
        mask = seen[:, None, :] & seen[:, :, None]
        return x + F.scaled_dot_product_attention(q, k, v, mask)[:, : x.shape[1]]


class Masked(nn.Module):
    def __init__(self, own: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(own) for _ in range(3))

    def forward(self, x: torch.Tensor, text: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([torch.ones_like(x[..., 0], dtype=torch.bool), told], 1)
        for block in self.blocks:
            x = block(x, text, seen)
        return x


def call(tokens: int) -> dict[str, torch.Tensor]:
    told = torch.tensor([[True, True, False]])
    return {"x": torch.randn(1, tokens, DIM), "text": torch.randn(1, TEXT, DIM), "told": told}


def captured(own: bool) -> tuple[Masked, CapturedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Masked(own).eval().requires_grad_(False)
        return model, capture(model, call(8), call(12))


def test_a_mask_of_shared_values_is_made_once_and_gives_its_rows() -> None:
    """The proof has compared rows of the partial form; the whole form gives the model's output at a third size."""
    model, found = captured(own=False)
    (kind,) = found.kinds
    assert kind.partial is not None
    assert [r for r in found.refusals if r.site != "grid"] == []
    (site, *others) = kind.partial.attentions
    assert not others
    assert site.mask is not None
    assert {block.shared for block in found.blocks} == {found.blocks[0].shared}  # one mask for all blocks
    ports = {port.name: port for port in found.shared}
    masks = [ports[name] for name in found.blocks[0].shared if ports[name].token_axis is not None]
    assert [(port.token_axis, port.rows) for port in masks] == [(1, "video+3")]
    given = call(10)
    with torch.no_grad():
        (made,) = run_full(found, flat_inputs(found, given)).outputs
        assert close(model(**given), made)


def test_a_mask_of_another_dtype_is_refused() -> None:
    """A forward casts its mask to bool (Motif-Video). The graph has no cast of one that was bool at capture."""
    _, found = captured(own=False)
    with pytest.raises(CallError, match=r"`told` is of torch.float32, .* captured with torch.bool"):
        flat_inputs(found, call(10) | {"told": torch.ones(1, TEXT)})


def test_a_mask_of_a_blocks_own_values_stays_in_it() -> None:
    _, found = captured(own=True)
    assert found.kinds[0].partial is None
    assert any("mask" in refusal.reason for refusal in found.refusals)
