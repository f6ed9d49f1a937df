"""Whether the results of a call are numbers: what is kept of others is never used again.

A latent, a signal or a weight that is NaN or infinite makes the results so. The flag travels to the host behind the
call and is read when the next call of the branch begins, so that no host waits for a device within a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mccompile.backend.role import Value

NOT_FINITE = "the last result was not finite"  # why a chunk is computed afresh


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """Tensors on the host. values: valid once `copied` has happened; None: they are there already."""

    values: tuple[torch.Tensor, ...]
    copied: torch.cuda.Event | None

    @classmethod
    def of(cls, *values: torch.Tensor) -> OnItsWay:
        """Begins to copy tensors of one device to the host. Copies from a GPU end behind the host's back."""
        if values[0].device.type != "cuda":
            return cls(tuple(v.cpu() for v in values), None)
        empty = [torch.empty(v.shape, dtype=v.dtype, pin_memory=True) for v in values]
        targets = tuple(e.copy_(v, non_blocking=True) for e, v in zip(empty, values, strict=True))
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(values[0].device))
        return cls(targets, copied)

    def arrived(self) -> tuple[torch.Tensor, ...]:
        """The tensors; waits for them."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values


def finite(results: Sequence[Value], given: Iterable[Value]) -> OnItsWay | None:
    """Whether all floating-point results are finite, as one bool on its way to the host; None where there are none.

    given: what the call was given. A cache of keys that is returned as it came tells nothing of the call.
    """
    same = {id(value) for value in given}
    floats = [r for r in results if isinstance(r, torch.Tensor) and r.is_floating_point() and id(r) not in same]
    return OnItsWay.of(torch.stack([r.isfinite().all() for r in floats]).all()) if floats else None
