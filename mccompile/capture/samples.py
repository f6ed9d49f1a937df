"""Where the values of a batched capture carry their samples.

Such a capture has several samples in its first call and one in its second; no other size shrinks to one.
"""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.facts import Extent, Facts, ScalarFact, TensorFact
from mccompile.capture.types import Along, Batch, SampleCount, Tangled


def samples_of(graph: fx.Graph, facts: Facts) -> Extent | None:
    """The number of samples at both probes: the size of an input's first axis that is 1 at the second alone."""
    for node in graph.find_nodes(op="placeholder"):
        fact = facts.get(node)
        shape = fact.shape if isinstance(fact, TensorFact) else ()
        if shape and shape[0][0] > shape[0][1] == 1:
            return shape[0]
    return None


def batch_of(value: fx.Node, facts: Facts) -> Batch | None:
    """How a value holds samples; None where it holds none."""
    fact, samples = facts.get(value), samples_of(value.graph, facts)
    if samples is None:
        return None
    counts = _counts(value.graph, facts, samples)
    if isinstance(fact, ScalarFact):
        each = _each(value, fact, counts, samples)
        if each is not None or _is_multiple(value, counts):
            return SampleCount(each)
    shape = fact.shape if isinstance(fact, TensorFact) else ()
    others = [i for i, e in enumerate(shape) if e != samples]
    if shape.count(samples) == 1 and not _symbols(value, shape.index(samples)) & _symbols(value, *others):
        return Along(shape.index(samples))
    found = value.meta.get("val")
    sizes = found.shape if isinstance(found, torch.Tensor) else (found,)
    if found is None:  # a pass made the value
        sizes = tuple(f"{one}|{two}" for one, two in shape)
    of_axes = zip(sizes, shape, strict=True) if shape else ()  # a number has no shape
    several = (str(n) for n, e in of_axes if is_several(e, samples))
    mixed = (s for s in sizes if isinstance(s, torch.SymInt) and _names(s) & counts)
    return next((Tangled(s) for s in (*several, *map(str, mixed))), None)


def _each(value: fx.Node, fact: ScalarFact, counts: set[str], samples: Extent) -> int | None:
    """How many a number counts for one sample; None where it counts something else."""
    if fact == ScalarFact(samples):
        return 1
    found, size = fact.values, value.meta.get("val")
    if found is None or not is_several(found, samples) or not isinstance(size, torch.SymInt):
        return None
    return found[1] if str(size.node.expr / found[1]) in counts else None


def _is_multiple(value: fx.Node, counts: set[str]) -> bool:
    """Whether a number is the number of samples times a number that it has no part in."""
    size = value.meta.get("val")
    if not isinstance(size, torch.SymInt):
        return False
    found = [symbol for symbol in size.node.expr.free_symbols if str(symbol) in counts]
    return len(found) == 1 and found[0] not in (size.node.expr / found[0]).free_symbols


def is_several(extent: Extent, samples: Extent) -> bool:
    """Whether a size is two or more for each sample."""
    return extent[1] > 1 and extent == (extent[1] * samples[0], extent[1])


def holds_samples(value: fx.Node, facts: Facts) -> bool:
    """Whether the first axis of an input has one entry for each sample, or several."""
    fact, samples = facts.get(value), samples_of(value.graph, facts)
    first = fact.shape[0] if isinstance(fact, TensorFact) and fact.shape else None
    return samples is not None and first is not None and (first == samples or is_several(first, samples))


def _counts(graph: fx.Graph, facts: Facts, samples: Extent) -> set[str]:
    """Symbols of the number of samples: of the inputs' axes that carry them."""
    found: set[str] = set()
    for node in graph.find_nodes(op="placeholder"):
        fact = facts.get(node)
        if isinstance(fact, TensorFact):
            found |= _symbols(node, *(i for i, e in enumerate(fact.shape) if e == samples))
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
