"""`torch.linspace` with as many numbers as a size of the call says, while a model is exported.

Torch's own takes a Python number, and the size would be a constant of the graph. Inside, the numbers are computed as
torch computes them: from the first one up to the middle, from the last one down to it, each with one rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def symbolic_spaces() -> Iterator[list[torch.SymInt]]:
    """Inside, `torch.linspace` takes a symbolic number of steps. Gives the numbers that it was asked for."""
    plain, asked = torch.linspace, list[torch.SymInt]()

    def linspace(
        start: float | torch.SymFloat, end: float | torch.SymFloat, steps: int | torch.SymInt, **options: object
    ) -> torch.Tensor:
        if isinstance(steps, torch.SymInt) and set(options) <= {"dtype", "device"}:
            asked.append(steps)
            return _spaced(start, end, steps, **options)
        return plain(start, end, steps, **options)

    torch.linspace = linspace
    try:
        yield asked
    finally:
        torch.linspace = plain


def _spaced(
    start: float | torch.SymFloat, end: float | torch.SymFloat, steps: torch.SymInt,
    dtype: torch.dtype | None = None, device: torch.device | str | None = None,
) -> torch.Tensor:  # fmt: skip
    dtype = dtype or torch.get_default_dtype()
    first, last = (torch.full((), x, dtype=dtype, device=device) for x in (start, end))
    step = ((last - first) / torch.sym_max(steps - 1, 1)).double()
    places = torch.arange(steps, device=device)
    up, down = first.double() + step * places, last.double() - step * (steps - 1 - places)
    return torch.where(places < torch.sym_max(steps // 2, 1), up, down).to(dtype)
