"""Computes prelude values when their inputs change: rotary tables once, the text once per prompt.

This is exact: a value is used again only for the same unmodified tensors (object identity, version counter and place).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mccompile.backend.role import Backend, GraphCall, Role, Value
from mccompile.capture.own import mark_of
from mccompile.capture.part import Input
from mccompile.capture.split import split_prelude
from mccompile.capture.types import CapturedModel
from mccompile.lowering.strip import stripped

KEPT = 4  # results per group: both guidance branches of two prompts


@dataclass(slots=True)
class _Group:
    """The wanted values with one and the same set of inputs they depend on."""

    depends: frozenset[str]
    names: tuple[str, ...]
    call: GraphCall
    arguments: tuple[str, ...]
    weighs: bool  # whether it reads weights
    results: OrderedDict[tuple[object, ...], tuple[tuple[Value, ...], tuple[Value, ...]]] = field(
        default_factory=OrderedDict
    )


class SharedValues:
    """Computes the prelude values `names` of a captured model, each group at most once per input."""

    def __init__(
        self, captured: CapturedModel, names: Sequence[str], backend: Backend, as_made: bool = False
    ) -> None:
        """as_made: streams stay in the order in memory in which the model makes them; sums depend on it."""
        ports = {p.name: p for p in (*captured.streams, *captured.shared, *captured.sources)}
        by_inputs: dict[frozenset[str], list[str]] = {}
        for name in dict.fromkeys(names):
            by_inputs.setdefault(ports[name].depends, []).append(name)
        own = as_made or bool(captured.opaque)  # a model's own code: as it is
        self._entry = frozenset[str]() if own else frozenset(captured.entry)
        self._groups = []
        for depends, members in by_inputs.items():
            part = stripped(split_prelude(captured, tuple(members)))
            arguments = tuple(o.name for o in part.takes if isinstance(o, Input))
            role = Role("prelude", depends=depends)
            call = backend(part.module, role) if depends else part.call  # once per shape: not compiled
            weighs = bool(part.graph.find_nodes(op="get_attr")) or captured.opaque != ""
            self._groups.append(_Group(depends, tuple(members), call, arguments, weighs))

    def get(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """All wanted values for these user inputs."""
        shapes = tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())
        out: dict[str, Value] = {}
        for group in self._groups:
            out |= zip(group.names, self._group(group, inputs, shapes), strict=True)
        return out

    def of_shapes(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """Those of the wanted values that depend on the shapes of the inputs alone."""
        shapes = tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())
        found: dict[str, Value] = {}
        for group in self._groups:
            if not group.depends:
                found |= zip(group.names, self._group(group, inputs, shapes), strict=True)
        return found

    def _group(self, group: _Group, inputs: Mapping[str, Value], shapes: tuple[object, ...]) -> tuple[Value, ...]:
        held = tuple(inputs[n] for n in sorted(group.depends))
        reusable = not any(isinstance(v, torch.Tensor) and v.is_inference() for v in held)
        key = (shapes, *((id(v), mark_of(v)) if isinstance(v, torch.Tensor) and reusable else v for v in held))
        if reusable and key in group.results:
            group.results.move_to_end(key)
            return group.results[key][1]
        values = tuple(group.call(*(inputs[a] for a in group.arguments)))
        if not self._entry.isdisjoint(group.names):  # a patch embedding leaves tokens last: every reader would stride
            named = zip(group.names, values, strict=True)
            values = tuple(v.contiguous() if n in self._entry else v for n, v in named)  # type: ignore[union-attr]
        if reusable:
            group.results[key] = (held, values)  # holding the inputs keeps their ids from being given again
            while len(group.results) > KEPT:
                group.results.popitem(last=False)
        return values

    def forget_values(self) -> None:
        """Drops the results that were made of weights or of inputs; those of shapes alone stay.

        Tensors may have changed since, in a way that no version counter tells (`weight.data.copy_`, numpy).
        """
        for group in self._groups:
            if group.weighs or group.depends:
                group.results.clear()

    def forget(self) -> None:
        """Drops all results, and the inputs that they are of."""
        for group in self._groups:
            group.results.clear()
