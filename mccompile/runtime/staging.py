"""Kept tensors in host memory. They go to the device before their block runs, and changed ones return afterwards.

While a block runs, the tensors of the next block are copied on a separate stream. All devices take the same path. Only
CUDA adds pinned memory, streams, and waiting for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

Tensors = tuple[torch.Tensor, ...]
_WAITING = 2  # writes under way: the keys and values of one block are scattered while the next one runs


@dataclass(frozen=True, slots=True)
class _Sent:
    """Rows on their way to the host. Their places are along the first axis of `host`."""

    host: torch.Tensor
    rows: torch.Tensor
    values: torch.Tensor
    arrived: torch.cuda.Event | None

    def arrive(self) -> None:
        if self.arrived is not None:
            self.arrived.synchronize()
        self.host.index_copy_(0, self.rows, self.values)


class Staging:
    """Moves kept tensors between the host and `device`. For the device `cpu` working copies are copies as well."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._side = torch.cuda.Stream(device) if self._cuda else None
        self._sent: deque[_Sent] = deque()
        self._written: torch.cuda.Event | None = None  # after the last tensor that goes whole into host memory

    def home(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of `tensor` in host memory, pinned where there is CUDA."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=self._cuda)
        self._write(host, tensor)
        return host

    def bring(self, host: torch.Tensor) -> torch.Tensor:
        """A working copy on the device, for work that is queued from now on."""
        self._arrive()
        working = torch.empty(host.shape, dtype=host.dtype, device=self.device)
        return working.copy_(host, non_blocking=True)

    def through(self, blocks: Sequence[Tensors]) -> Iterator[Tensors]:
        """Working copies of each block's tensors in turn; while one is used, the next one's are being copied."""
        self._arrive()
        coming = self._begin(blocks[0]) if blocks else ()
        for i in range(len(blocks)):
            self._wait()
            working = coming
            coming = self._begin(blocks[i + 1]) if i + 1 < len(blocks) else ()
            yield working

    def put(self, host: torch.Tensor, axis: int | None, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        """Writes rows (all of it where there are none) into `host`; `settle` before the host reads it."""
        if axis is None or rows is None:
            self._arrive()
            self._write(host, values)
            return
        index, sent = self._send(rows), self._send(values.movedim(axis, 0))
        arrived = torch.cuda.current_stream(self.device).record_event() if self._cuda else None
        self._sent.append(_Sent(host.movedim(axis, 0), index, sent, arrived))
        while len(self._sent) > _WAITING:
            self._sent.popleft().arrive()

    def settle(self) -> None:
        """All that was put is in host memory; the host waits for what is still on its way, and for nothing else."""
        self._arrive()
        if self._written is not None:
            self._written.synchronize()
            self._written = None

    def _arrive(self) -> None:
        """All rows that were put are in host memory. Tensors that go whole are ordered by the device's stream."""
        while self._sent:
            self._sent.popleft().arrive()

    def _write(self, host: torch.Tensor, values: torch.Tensor) -> None:
        host.copy_(values, non_blocking=True)
        if self._cuda:
            self._written = torch.cuda.current_stream(self.device).record_event()

    def _begin(self, hosts: Tensors) -> Tensors:
        """Memory is taken from the stream that will use it, so that it is free again when that stream says so."""
        made = tuple(torch.empty(t.shape, dtype=t.dtype, device=self.device) for t in hosts)
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        with self._on_the_side():
            for target, host in zip(made, hosts, strict=True):
                target.copy_(host, non_blocking=True)
        return made

    def _wait(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)

    def _on_the_side(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._side) if self._side is not None else nullcontext()

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=self._cuda)
        return host.copy_(tensor, non_blocking=True)
