"""A size as a value of a graph: which operand has an axis of it, or which number is it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from mccompile.capture.facts import Extent, Fact, ScalarFact, TensorFact


@dataclass(frozen=True, slots=True)
class Holder:
    """A value that has a size along `axis`, or that is the size itself (None)."""

    node: fx.Node
    axis: int | None

    @property
    def symbol(self) -> str:
        """The size as export wrote it; empty where that is not known."""
        value = self.node.meta.get("val")
        if self.axis is not None:
            value = value.shape[self.axis] if isinstance(value, torch.Tensor) else None
        return symbol_of(value)


def symbol_of(size: object) -> str:
    """A size as text: the expression of a symbolic one; empty for what is no size."""
    if isinstance(size, torch.SymInt):
        return str(size.node.expr)
    return str(size) if isinstance(size, int) else ""


def find_size(
    extent: Extent,
    facts: Mapping[fx.Node, Fact],
    tensors: Iterable[tuple[fx.Node, Collection[int]]],
    numbers: Iterable[fx.Node] = (),
    symbol: str = "",
) -> Holder | None:
    """A value that has the size `extent` at both probes; one of the same `symbol` if there is any, else the first.

    tensors: with the axes that may not be read; numbers: scalars that may be.
    """
    found = []
    for node, barred in tensors:
        fact = facts.get(node)
        shape = fact.shape if isinstance(fact, TensorFact) else ()
        found += [Holder(node, a) for a, own in enumerate(shape) if own == extent and a not in barred]
    found += [Holder(n, None) for n in numbers if facts.get(n) == ScalarFact(extent)]
    return next((h for h in found if symbol and h.symbol == symbol), found[0] if found else None)
