"""`int` of a size is a size of the exported graph, and `int` is for all else what it was."""

from __future__ import annotations

import torch
from torch import nn

from mccompile.capture.export import export_model
from mccompile.capture.whole_numbers import symbolic_ints


class _Counting(nn.Module):
    def forward(self, x: torch.Tensor, more: int = 2) -> torch.Tensor:
        rows, halves = (int(n) for n in (x.shape[1], x.shape[1] // 2))
        assert isinstance(more, int)
        assert isinstance(rows, int | torch.SymInt)
        assert int("3") == int(3.5) == int("11", 2) == 3
        return x.view(rows, -1).sum(0) * halves + more


def test_an_int_of_a_size_varies_with_it() -> None:
    model = _Counting().eval()
    exported = export_model(model, {"x": torch.ones(1, 4, 2)}, {"x": torch.ones(1, 6, 2)})
    call = {"x": torch.arange(18.0).reshape(1, 9, 2)}
    assert torch.equal(exported.module(**call), model(**call))


def test_int_is_put_back() -> None:
    with symbolic_ints(_Counting()):
        assert "int" in globals()
    assert "int" not in globals()
