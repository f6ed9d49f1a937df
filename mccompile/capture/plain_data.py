"""`tensor.data` while a model is exported: what a forward writes there (`table.data[:, 4:].copy_(rows)`) is written.

Export does not follow this attribute: what is read there would become a constant of the graph, and what is written
there would be lost. Without gradients it is `detach`, which export follows: a tensor of the same memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor


@contextlib.contextmanager
def followed_data() -> Iterator[None]:
    """Inside, without gradients, `data` of a tensor that is traced is `detach()`; that of others is as it was."""
    plain = torch.Tensor.data

    def read(tensor: torch.Tensor) -> torch.Tensor:
        traced = isinstance(tensor, FakeTensor | FunctionalTensor)
        return tensor.detach() if traced else plain.__get__(tensor)

    torch.Tensor.data = property(read, plain.__set__, plain.__delete__)
    try:
        yield
    finally:
        del torch.Tensor.data
