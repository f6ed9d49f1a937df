"""Kept tensors in host memory, on the device `cpu`: working copies are copies, and rows are there when read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import mccompile.runtime.staging as staging_module
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


class OnCuda:
    """Torch for a staging on CUDA: tensors stay on the CPU, and what orders the copies is noted by its name."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.cuda = self
        self.side: str | None = None

    def empty(self, shape: torch.Size, dtype: torch.dtype, device: object, pin_memory: bool = False) -> torch.Tensor:
        if device == "cpu":
            assert pin_memory  # else a copy would make the host wait
        else:
            self.noted.append(f"room of {self.side or 'the stream'}")
        made = torch.empty(shape, dtype=dtype).as_subclass(Noting)
        made.told = self
        return made

    def Stream(self, device: object) -> FakeStream:
        return FakeStream(self, "side")

    def current_stream(self, device: object) -> FakeStream:
        return FakeStream(self, "stream")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.side = stream.name
        yield
        self.side = None


class Noting(torch.Tensor):
    """Notes on which stream it is copied to, and that the host does not wait."""

    told: OnCuda

    def copy_(self, value: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking
        self.told.noted.append(f"copy on {self.told.side or 'the stream'}")
        return super().copy_(value)


class FakeStream:
    def __init__(self, of: OnCuda, name: str) -> None:
        self.of, self.name = of, name

    def wait_stream(self, other: FakeStream) -> None:
        self.of.noted.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> FakeStream:
        self.of.noted.append("event")
        return self

    def synchronize(self) -> None:
        self.of.noted.append("host waits")


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> tuple[Staging, OnCuda]:
    fake = OnCuda()
    monkeypatch.setattr(staging_module, "torch", fake)
    return Staging(torch.device("cuda")), fake


def test_on_cuda_the_next_block_is_copied_beside_the_one_that_runs(on_cuda: tuple[Staging, OnCuda]) -> None:
    """Its memory is of the stream that uses it, and neither stream reads what the other one has not yet written."""
    staging, fake = on_cuda
    begun = ["room of the stream", "side waits for stream", "copy on side"]
    for number, _ in enumerate(staging.through([(torch.ones(1),), (torch.ones(1),)])):
        assert fake.noted == [*(begun if number == 0 else []), "stream waits for side", *(begun if number == 0 else [])]
        fake.noted.clear()
    assert fake.noted == []


def test_on_cuda_the_host_waits_for_what_it_reads_and_for_nothing_else(on_cuda: tuple[Staging, OnCuda]) -> None:
    staging, fake = on_cuda
    host = staging.home(torch.zeros(4))
    assert fake.noted == ["copy on the stream", "event"]
    fake.noted.clear()
    staging.settle()
    staging.settle()
    assert fake.noted == ["host waits"]
    fake.noted.clear()
    staging.put(host, 0, torch.tensor([2]), torch.tensor([5.0]))
    assert fake.noted == ["copy on the stream", "copy on the stream", "event"]
    fake.noted.clear()
    staging.bring(host)
    assert fake.noted == ["host waits", "room of the stream", "copy on the stream"]
    assert host.tolist() == [0.0, 0.0, 5.0, 0.0]
