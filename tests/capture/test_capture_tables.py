"""Tables of positions that a forward keeps for one size and computes for others, as CogVideoX 2B does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mccompile.capture import TokenGrid, capture_batched
from mccompile.capture.export import export_model
from mccompile.capture.plain_data import followed_data

DIM, KEPT = 12, 5


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v)


class _Placed(nn.Module):
    """Keeps the table of `KEPT` frames, which is `factor` times what it would compute."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv3d(4, DIM, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([_Block(), _Block()])
        self.register_buffer("kept", self.table(KEPT, 12) * factor)
        self.requires_grad_(False)

    def table(self, frames: int, places: int) -> torch.Tensor:
        rows = torch.arange(frames * places)[:, None] * 0.01 * torch.arange(1, DIM + 1)
        made = torch.zeros(1, 1 + frames * places, DIM)
        made.data[:, 1:].copy_(torch.sin(rows))
        return made[:, 1:]

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = self.embed(latent).flatten(2).transpose(1, 2)
        frames = latent.size(2)
        x = x + (self.kept if frames == KEPT else self.table(frames, x.size(1) // frames))
        for block in self.blocks:
            x = block(x)
        return x


def _call(frames: int) -> dict[str, object]:
    return {"latent": torch.randn(1, 4, frames, 6, 8, generator=torch.Generator().manual_seed(frames))}


def test_a_table_is_computed_at_each_size() -> None:
    model = _Placed().eval()
    found = export_model(model, _call(4), _call(3))
    for frames in (2, 3, 4, KEPT, 7):
        torch.testing.assert_close(found.module(**_call(frames)), model(**_call(frames)), rtol=0, atol=0)


@pytest.mark.parametrize("sizes", [(KEPT, 3), (3, KEPT)])
def test_either_call_may_be_of_the_size_of_the_table(sizes: tuple[int, int]) -> None:
    found, _ = capture_batched(_Placed().eval(), *map(_call, sizes))
    assert all(kind.partial is not None for kind in found.kinds)
    assert (found.grid, found.refusals) == (TokenGrid("latent", (2, 3, 4), (1, 2, 2)), ())


@pytest.mark.parametrize("sizes", [(KEPT, 3), (3, KEPT)])
def test_another_table_at_its_own_size_is_seen(sizes: tuple[int, int]) -> None:
    found, _ = capture_batched(_Placed(factor=1.1).eval(), *map(_call, sizes))
    assert found.opaque


def test_data_of_other_tensors_is_as_it_was() -> None:
    own = torch.Tensor.data
    with followed_data():
        weight = nn.Parameter(torch.ones(2))
        assert not weight.data.requires_grad
        weight.data.mul_(2)
        weight.data = weight.data + 1
        assert weight.tolist() == [3, 3]
    assert torch.Tensor.data is own
