"""A part as a callable at one place of the model: weights are in place, the rest is resolved operand by operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mccompile.backend.role import GraphCall, Value
from mccompile.capture.part import Additive, Operand, Part, Shared, Stream, Weight, attribute
from mccompile.capture.types import BlockSite, CapturedModel, names_at
from mccompile.diagnostics.failure import InternalError


class Misplaced(InternalError):
    """A part takes an operand that its form has not: an error of ours, which lowering/spec.py finds earlier."""

    def __init__(self, form: str, operand: object) -> None:
        super().__init__(f"a {form} part takes {operand}")


@dataclass(frozen=True, slots=True)
class BoundPart:
    """takes: the operands of a part, by the names that they have here. _open: those that a call fills, by place."""

    takes: tuple[Operand, ...]
    _call: GraphCall
    _fixed: tuple[Value, ...]
    _open: tuple[tuple[int, Operand], ...]

    def __call__(self, resolve: Callable[[Operand], Value]) -> tuple[Value, ...]:
        """Runs the part on what `resolve` gives for each operand that is no weight."""
        return self._call(*self.arguments(resolve))

    def arguments(self, resolve: Callable[[Operand], Value]) -> list[Value]:
        """What the part runs on, in order."""
        found = list(self._fixed)
        for place, operand in self._open:
            found[place] = resolve(operand)
        return found


def bound_at(part: Part, call: GraphCall, captured: CapturedModel, site: BlockSite) -> BoundPart:
    """The part of a kind of block at one of its blocks. call: what runs the part, on its operands in order."""
    names = names_at(captured.kinds[site.kind], site)
    takes: list[Operand] = []
    fixed: list[Value] = []
    for operand in part.takes:
        weight = 0
        match operand:
            case Stream():
                takes.append(Stream(names[operand]))
            case Shared():
                takes.append(Shared(names[operand]))
            case Additive(name):
                takes.append(Additive(names[Shared(name)]))
            case Weight():
                takes.append(Weight(names[operand]))
                weight = weight_of(captured.module, names[operand])
            case _:
                takes.append(operand)
        fixed.append(weight)
    free = tuple((i, o) for i, o in enumerate(takes) if not isinstance(o, Weight))
    return BoundPart(tuple(takes), call, tuple(fixed), free)


def weight_of(module: fx.GraphModule, name: str) -> Value:
    """A weight by its dotted path: the very tensor of the graph, so that what it is pointed at is read (own.py)."""
    value = attribute(module, name)
    assert isinstance(value, torch.Tensor | int)
    return value


def one_sample(value: Any, sample: int | None, batch: int) -> Any:
    """A view of one sample of a value whose first axis is the batch; the value itself for sample None."""
    if sample is None or not isinstance(value, torch.Tensor) or value.dim() == 0 or value.size(0) != batch:
        return value
    return value[sample : sample + 1]


def own_count(value: Any, each: int | None, batch: int) -> Any:
    """What a number that counts something in all samples is for one of them; each: where that is always the same."""
    return value // batch if each is None else each


def of_shared(shared: Mapping[str, Value]) -> Callable[[Operand], Value]:
    """Resolves the operands of a part that takes shared values and weights only."""

    def resolve(operand: Operand) -> Value:
        match operand:
            case Shared(name):
                return shared[name]
            case _:
                raise Misplaced("once", operand)

    return resolve
