"""Runs graphs eagerly and records their arguments. What differs between two calls is dynamic."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx

from mccompile.backend.graph_text import fingerprint
from mccompile.backend.role import GraphCall, Role, Value

ScalarArgument: TypeAlias = int | float | bool | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor argument of one recorded call. order: its axes from the largest stride to the smallest."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    order: tuple[int, ...]


ArgumentSpec: TypeAlias = TensorSpec | ScalarArgument
Key: TypeAlias = tuple[Role, str]  # role, fingerprint of its graph
DYNAMIC = "dynamic"
BATCHED = "+batch"  # behind a graph's fingerprint: the same graph for calls of several samples


@dataclass(slots=True)
class RoleRecording:
    """The graph of one role and the distinct calls that were seen of it, in order.

    tensors: for each output whether it is a tensor (else a number); empty until the first call.
    """

    role: Role
    module: fx.GraphModule
    calls: list[tuple[ArgumentSpec, ...]] = field(default_factory=list)
    tensors: tuple[bool, ...] = ()

    def axes(self, place: int) -> tuple[int, ...]:
        """The axes of argument `place` (a tensor) whose sizes differ between calls."""
        shapes = {spec.shape for spec in (c[place] for c in self.calls) if isinstance(spec, TensorSpec)}
        return tuple(i for i, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1)

    def order(self, place: int) -> tuple[int, ...]:
        """The order of axes that all calls have in common, the plain one where they differ."""
        orders = {spec.order for spec in (c[place] for c in self.calls) if isinstance(spec, TensorSpec)}
        first = next(iter(orders))
        return first if len(orders) == 1 else tuple(range(len(first)))

    def number(self, place: int) -> ScalarArgument | str:
        """The value of argument `place` (a number) if all calls agree, else DYNAMIC."""
        values = {spec for spec in (c[place] for c in self.calls) if not isinstance(spec, TensorSpec)}
        return next(iter(values)) if len(values) == 1 else DYNAMIC

    def varied(self) -> tuple[ArgumentSpec, ...]:
        """The call whose dynamic sizes are the most distinct: equal ones would be taken for related ones."""
        places = [i for i, spec in enumerate(self.calls[0]) if isinstance(spec, TensorSpec)]
        axes = {i: self.axes(i) for i in places}

        def distinct(call: tuple[ArgumentSpec, ...]) -> tuple[int, int]:
            shapes = {i: spec.shape for i, spec in enumerate(call) if isinstance(spec, TensorSpec)}
            sizes = [shapes[i][a] for i in places for a in axes[i]]
            return min(sizes, default=0) > 1, len(set(sizes))

        return max(self.calls, key=distinct)


@dataclass(slots=True)
class Recorder:
    """A backend (backend/role.py) that compiles nothing and records every role it is asked for."""

    recordings: dict[Key, RoleRecording] = field(default_factory=dict)
    _wanted: Callable[[Role], bool] | None = None  # calls are of several samples; roles that are then recorded

    def __call__(self, module: fx.GraphModule, role: Role) -> GraphCall:
        graph = fingerprint(module)
        one = self.recordings.setdefault((role, graph), RoleRecording(role, module))
        several = RoleRecording(role, module)

        def run(*arguments: Value) -> tuple[Value, ...]:
            results = module.forward(*arguments)
            recording = one if self._wanted is None else several
            if self._wanted is not None and self._wanted(role):
                self.recordings.setdefault((role, graph + BATCHED), several)
            call = tuple(_spec(a) for a in arguments)
            if call not in recording.calls:
                recording.calls.append(call)
            recording.tensors = tuple(isinstance(r, torch.Tensor) for r in results)
            return results

        return run

    @contextlib.contextmanager
    def several_samples(self, wanted: Callable[[Role], bool]) -> Iterator[None]:
        """Inside, calls are of several samples: recorded apart, for the roles that are wanted."""
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None


def axis_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Axes from the largest stride to the smallest if the tensor is dense in that order, else as they come."""
    plain = tuple(range(tensor.dim()))
    if tensor.is_contiguous():
        return plain
    order = tuple(sorted(plain, key=lambda i: (-tensor.stride(i), i)))
    return order if tensor.permute(order).is_contiguous() else plain


def _spec(value: object) -> ArgumentSpec:
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype, value.device, axis_order(value))
    assert value is None or isinstance(value, int | float), f"graphs take tensors and numbers, not {type(value)}"
    return value
