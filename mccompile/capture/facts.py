"""Sizes of every value at the two probe calls. Two axes count as equal if their sizes agree at both calls.

Symbols alone do not identify an axis (`s33*(s20//2)` and `s92*(s20//2)` may be one count because two inputs
always come together), so the exported graph runs twice on fake tensors, and the concrete sizes are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from mccompile.capture.errors import IdentityError, first_line

Extent: TypeAlias = tuple[int, int]  # a size at the first and at the second probe


@dataclass(frozen=True, slots=True)
class TensorFact:
    shape: tuple[Extent, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class ScalarFact:
    """A Python number in the graph; only integers are ever sizes."""

    values: Extent | None


@dataclass(frozen=True, slots=True)
class TupleFact:
    items: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class NoFact:
    """None, or a value whose rank differs between the probes."""


Fact: TypeAlias = TensorFact | ScalarFact | TupleFact | NoFact
Facts: TypeAlias = Mapping[fx.Node, Fact]


def is_dynamic(extent: Extent) -> bool:
    return extent[0] != extent[1]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps shapes only; parameters are turned into fake tensors when a mode is given."""

    def __init__(
        self, module: fx.GraphModule, mode: FakeTensorMode | None, copies: Mapping[fx.Node, fx.Node]
    ) -> None:
        super().__init__(module, garbage_collect_values=not copies)
        self.mode = mode
        self.copies = copies
        self.seen: dict[fx.Node, object] = {}

    def fetch_attr(self, target: str) -> object:
        value = super().fetch_attr(target)
        if self.mode is not None and isinstance(value, torch.Tensor):
            return self.mode.from_tensor(value, static_shapes=True)
        return value

    def run_node(self, n: fx.Node) -> object:
        if n in self.copies:
            self.seen[n] = self.seen[self.copies[n]]
            return self.env[self.copies[n]]
        if n.op == "get_attr" and n.users and self.copies.keys() >= n.users.keys():  # nobody reads it here
            value = fx.Interpreter.fetch_attr(self, str(n.target))
        else:
            value = super().run_node(n)
        self.seen[n] = _shape(value)
        return value


def _shape(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return (tuple(int(s) for s in value.shape), value.dtype)
    if isinstance(value, list | tuple):
        return [_shape(v) for v in value]
    return value


def _record(
    module: fx.GraphModule, inputs: Sequence[object], copies: Mapping[fx.Node, fx.Node] | None
) -> dict[fx.Node, object]:
    """On fake tensors where copies are given: each has the sizes of what it copies."""
    mode = FakeTensorMode() if copies is not None else None
    recorder = _Recorder(module, mode, copies or {})
    with torch.no_grad():
        if mode is None:
            recorder.run(*inputs)
        else:
            faked = [mode.from_tensor(x, static_shapes=True) if isinstance(x, torch.Tensor) else x for x in inputs]
            with mode:
                recorder.run(*faked)
    return recorder.seen


def _pair(first: object, second: object) -> Fact:
    if isinstance(first, tuple) and isinstance(second, tuple):
        (shape_a, dtype), (shape_b, _) = first, second
        same = len(shape_a) == len(shape_b)
        return TensorFact(tuple(zip(shape_a, shape_b, strict=True)), dtype) if same else NoFact()
    if isinstance(first, list) and isinstance(second, list):
        same = len(first) == len(second)
        return TupleFact(tuple(_pair(a, b) for a, b in zip(first, second, strict=True))) if same else NoFact()
    if isinstance(first, int) and isinstance(second, int) and not isinstance(first, bool):
        return ScalarFact((first, second))
    return ScalarFact(None) if isinstance(first, bool | float) else NoFact()


def measure(
    module: fx.GraphModule,
    probe: Sequence[object],
    second: Sequence[object],
    copies: Mapping[fx.Node, fx.Node] | None = None,
) -> dict[fx.Node, Fact]:
    """Facts of every node for two lists of flat inputs. Real data is used only if shapes depend on data.

    copies: nodes that do what others do, on values of the same sizes.
    Raises IdentityError (MC0404) if the graph does not run at one of the sizes.
    """
    try:
        one, two = (_record(module, inputs, copies or {}) for inputs in (probe, second))
    except (DataDependentOutputException, DynamicOutputShapeException):
        one, two = (_real(module, inputs) for inputs in (probe, second))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise IdentityError(
            "the exported graph",
            f"it does not run at both sizes: {_said(error)}",
            "a size became a constant on the way; forward must compute it from the shapes of its arguments",
        ) from error
    return {n: _pair(one[n], two[n]) for n in module.graph.nodes if n in one}


def _said(error: Exception) -> str:
    """What an error says; Python tells of a list's length in words that say nothing of the model."""
    length = isinstance(error, IndexError) and "range" in str(error)
    return "a list that its forward makes has another length" if length else first_line(error)


def _real(module: fx.GraphModule, inputs: Sequence[object]) -> dict[fx.Node, object]:
    """What each node gives, on the data of a call."""
    try:
        return _record(module, inputs, None)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise IdentityError(
            "the exported graph",
            f"it does not run at both sizes: {first_line(error)}",
            "a size that depends on data (nonzero, boolean indexing) became a constant; avoid it in forward",
        ) from error


def tensor_fact(facts: Facts, node: fx.Node) -> TensorFact | None:
    fact = facts.get(node)
    return fact if isinstance(fact, TensorFact) else None


def extents(fact: Fact) -> Iterator[Extent]:
    """All extents of all tensors of a value."""
    if isinstance(fact, TensorFact):
        yield from fact.shape
    elif isinstance(fact, TupleFact):
        for item in fact.items:
            yield from extents(item)
