"""`int` of a size is a size of the exported graph, and `int` is for all else what it was."""

from __future__ import annotations

import torch
from torch import nn

from mccompile.capture.export import export_model
from mccompile.capture.whole_numbers import symbolic_ints


class _Counting(nn.Module):
    def forward(self, x: torch.Tensor, more: int = 2) -> torch.Tensor:
        rows, halves = (int(n) for n in (x.shape[1], x.shape[1] // 2 * 3 % 7))
        assert isinstance(more, int)
        assert isinstance(rows, int | torch.SymInt)
        assert int("3") == int(3.5) == int("11", 2) == 3
        return x.view(rows, -1).sum(0) * halves + more


class _Rounding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : int(round(x.shape[1] / 3 * 0.7))].sum(1)  # noqa: RUF046  # as models write it


def test_an_int_of_a_size_varies_with_it() -> None:
    model = _Counting().eval()
    exported = export_model(model, {"x": torch.ones(1, 4, 2)}, {"x": torch.ones(1, 6, 2)})
    for rows in (3, 9, 10):
        call = {"x": torch.arange(2.0 * rows).reshape(1, rows, 2)}
        assert torch.equal(exported.module(**call), model(**call))


def test_a_rounded_fraction_of_sizes_is_a_number_with_a_guard() -> None:
    """Another number at another size is seen: the model is asked where a guard is broken."""
    exported = export_model(_Rounding().eval(), {"x": torch.ones(1, 14, 2)}, {"x": torch.ones(1, 26, 2)})
    assert exported.guards[0] == "round(0.7*(L['x'].size()[1] / 3)) == 3"


def test_int_is_put_back() -> None:
    with symbolic_ints(_Counting()):
        assert "int" in globals()
    assert "int" not in globals()


class _Measuring(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = [len(row) + 1 for row in x.unbind(0)]
        assert len(set(lengths)) == len({1: 2}) == len(set("aa")) == 1
        assert isinstance(set(), set)
        return x.new_ones(lengths[0]).cumsum(0)


def test_a_length_and_a_set_of_sizes_vary_with_them() -> None:
    model = _Measuring().eval()
    exported = export_model(model, {"x": torch.ones(1, 4, 2)}, {"x": torch.ones(1, 6, 2)})
    for rows in (3, 9, 10):
        assert torch.equal(exported.module(x=torch.ones(1, rows, 2)), model(torch.ones(1, rows, 2)))
