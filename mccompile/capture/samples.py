"""Where the values of a batched capture carry their samples.

Such a capture has two samples in its first call and one in its second; no other size shrinks between the calls.
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import Extent, Facts, ScalarFact, TensorFact
from mccompile.capture.types import Along, Batch, Count, Tangled

SAMPLES: Extent = (2, 1)


def batch_of(value: fx.Node, facts: Facts) -> Batch | None:
    """How a value holds samples; None where it holds none."""
    fact = facts.get(value)
    if fact == ScalarFact(SAMPLES):
        return Count()
    shape = fact.shape if isinstance(fact, TensorFact) else ()
    if shape.count(SAMPLES) == 1 and not _symbols(value, shape.index(SAMPLES)) & _symbols(value, *_but(shape)):
        return Along(shape.index(SAMPLES))
    found = value.meta.get("val")
    sizes = found.shape if isinstance(found, torch.Tensor) else (found,)
    counts = _counts(value.graph, facts)
    mixed = (s for s in sizes if isinstance(s, torch.SymInt) and _names(s) & counts)
    return next((Tangled(str(s)) for s in mixed), None)


def _but(shape: tuple[Extent, ...]) -> list[int]:
    return [i for i in range(len(shape)) if shape[i] != SAMPLES]


def _counts(graph: fx.Graph, facts: Facts) -> set[str]:
    """Symbols of the number of samples: of the inputs' axes that carry them."""
    found: set[str] = set()
    for node in graph.nodes:
        fact = facts.get(node)
        if node.op == "placeholder" and isinstance(fact, TensorFact):
            found |= _symbols(node, *(i for i, e in enumerate(fact.shape) if e == SAMPLES))
    return found


def _symbols(value: fx.Node, *axes: int) -> set[str]:
    """Names of the symbols in the sizes of some axes."""
    found = value.meta.get("val")
    if not isinstance(found, torch.Tensor):
        return set()
    sizes = (found.shape[a] for a in axes)
    return {x for s in sizes if isinstance(s, torch.SymInt) for x in _names(s)}


def _names(size: torch.SymInt) -> set[str]:
    return {str(x) for x in size.node.expr.free_symbols}
