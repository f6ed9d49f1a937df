"""Kept tensors in host memory, on the device `cpu`: working copies are copies, and rows are there when read."""

from __future__ import annotations

import pytest
import torch

from mccompile.runtime.staging import _WAITING, Staging

CPU = torch.device("cpu")


def test_what_goes_home_and_comes_back_are_copies() -> None:
    staging, value = Staging(CPU), torch.arange(6.0).view(2, 3)
    host = staging.home(value)
    working = staging.bring(host)
    assert torch.equal(host, value)
    assert torch.equal(working, value)
    working.zero_()
    assert torch.equal(host, value)
    value.zero_()
    assert host.sum() == 15


def test_blocks_are_brought_in_turn() -> None:
    staging = Staging(CPU)
    homes = [(torch.full((2,), float(i)), torch.full((3,), -float(i))) for i in range(4)]
    for i, (one, two) in enumerate(staging.through(homes)):
        assert (one.tolist(), two.tolist()) == ([i] * 2, [-i] * 3)
        one.fill_(9.0)
    assert [float(one[0]) for one, _ in homes] == [0.0, 1.0, 2.0, 3.0]
    assert list(staging.through([])) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_are_written_where_they_belong(axis: int) -> None:
    staging, rows = Staging(CPU), torch.tensor([3, 1])
    host, shape = torch.zeros(4, 4, 4), [4, 4, 4]
    shape[axis] = 2
    values = torch.arange(32.0).view(shape)
    staging.put(host, axis, rows, values)
    staging.settle()
    expected = torch.zeros(4, 4, 4)
    expected.movedim(axis, 0)[3], expected.movedim(axis, 0)[1] = values.movedim(axis, 0).unbind(0)
    assert torch.equal(host, expected)


def test_rows_arrive_in_order_and_not_all_at_once() -> None:
    """The values are those of the moment of the write; a few writes are under way, and who reads waits for them."""
    staging, host, row = Staging(CPU), torch.zeros(6), torch.tensor([0])
    for number in range(1, _WAITING + 3):
        value = torch.tensor([float(number)])
        staging.put(host, 0, row, value)
        value.zero_()
        assert host[0] == max(0, number - _WAITING)
    assert staging.bring(host)[0] == _WAITING + 2
    staging.put(host, 0, row, torch.tensor([7.0]))
    assert next(iter(staging.through([(host,)])))[0][0] == 7.0


@pytest.mark.parametrize(("axis", "rows"), [(None, torch.tensor([0])), (0, None)])
def test_a_whole_tensor_is_written_after_the_rows_that_were_put_before(
    axis: int | None, rows: torch.Tensor | None
) -> None:
    staging, host = Staging(CPU), torch.zeros(2)
    staging.put(host, 0, torch.tensor([1]), torch.tensor([5.0]))
    staging.put(host, axis, rows, torch.tensor([1.0, 2.0]))
    staging.settle()
    assert host.tolist() == [1.0, 2.0]
