"""Lists of tensors with one entry for each block, such as kept keys: what is equal in both calls is one size.

before: `cached[0]` has s0 rows and `cached[1]` has s1, so no block is given what another one is given
after:  while the model is exported, its forward begins with a check that both are equal, and both have s0 rows

That they are equal in later calls is not assumed: whatever comes with new sizes is compared with the model then.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.watched import forwards

ENTRY = re.compile(r"\[\d+")  # of a list; arguments have their names


def one_size(
    model: nn.Module, paths: Sequence[str], one: Sequence[object], other: Sequence[object]
) -> tuple[tuple[int, int], ...]:
    """Pairs of leaves: the first entry of a list, and each further one, where all have its sizes in both calls.

    Only of lists that are as long as one of the model's lists of modules: others may hold an entry for each sample.
    paths: where each leaf of the keyword arguments stands. one, other: the leaves of the calls.
    """
    depths = {len(module) for module in model.modules() if isinstance(module, nn.ModuleList)}
    alike: dict[object, list[int]] = defaultdict(list)
    for place, (path, a, b) in enumerate(zip(paths, one, other, strict=True)):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and ENTRY.search(path):
            alike[_but_the_first(path), a.shape, b.shape, a.dtype].append(place)
    return tuple((places[0], place) for places in alike.values() if len(places) in depths for place in places[1:])


def _but_the_first(path: str) -> str:
    """The path without the number of the outermost list, whose entries are those of blocks."""
    return ENTRY.sub("[", path, count=1)


@contextlib.contextmanager
def with_one_size(model: nn.Module, call: Mapping[str, object], pairs: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Inside, the model's forward checks that the leaves of each pair have the same sizes. It takes keywords only."""
    if not pairs:
        yield
        return
    own = model.forward

    def forward(**arguments: object) -> object:
        leaves = pytree.tree_leaves({name: arguments[name] for name in call})
        for first, place in pairs:
            for a, b in zip(leaves[first].shape, leaves[place].shape, strict=True):
                torch._check(a == b)
        return own(**arguments)

    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    with forwards({model: forward}):
        yield
