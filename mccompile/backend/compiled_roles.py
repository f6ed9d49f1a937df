"""What runs in place of recorded graphs: the packages made of them, found by role and graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import fx

from mccompile.backend.aot import numbers_of
from mccompile.backend.graph_text import fingerprint
from mccompile.backend.package import Contract, Package, PackageFolder
from mccompile.backend.patches import multiply_patches
from mccompile.backend.record import BATCHED, Key
from mccompile.backend.role import GraphCall, Role, Value
from mccompile.capture.part import attribute
from mccompile.capture.types import Refusal

CompiledForm = Literal["package", "torch.compile", "eager"]


@dataclass(frozen=True, slots=True)
class CompiledRole:
    """What runs in place of the graph of one role. reason: why it is not a package; "" if it is one.

    tensors: for each output whether it is a tensor; the others are numbers, computed by the graph itself.
    """

    role: Role
    form: CompiledForm
    reason: str
    tensors: tuple[bool, ...]
    package: Path | None = None
    contract: Contract | None = None


@dataclass(slots=True)
class CompiledRoles:
    """A backend (backend/role.py) over roles that were compiled before.

    compiled_count: graphs compiled since it was made; a bundle's stays 0. unknown: roles asked for that were
    never recorded, which therefore run eagerly.
    """

    roles: Mapping[Key, CompiledRole]
    compiled_count: int = 0
    unknown: list[Role] = field(default_factory=list)
    _jit: Mapping[str, GraphCall] = field(default_factory=dict)  # by fingerprint
    _folder: PackageFolder | None = None  # the packages' files, until the backend is dropped

    def __call__(self, module: fx.GraphModule, role: Role) -> GraphCall:
        graph = fingerprint(module)
        found, several = self.roles.get((role, graph)), self.roles.get((role, graph + BATCHED))
        if found is None:
            self.unknown.append(role)
            return module.forward
        one = self._callable(module, found, graph)
        if several is None or found.form == "eager":
            return one
        return by_samples(one, self._callable(module, several, graph + BATCHED), found, several)

    def _callable(self, module: fx.GraphModule, role: CompiledRole, graph: str) -> GraphCall:
        if role.package is not None and role.contract is not None:
            return packaged(module, role)
        jit = self._jit.get(graph)
        return multiply_patches(module).forward if jit is None else jit

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Roles that are no packages although they should be, and why."""
        missed = [Refusal(f"graph {r.role}", r.reason) for r in self.roles.values() if r.form == "torch.compile"]
        return (*missed, *(Refusal(f"graph {u}", "runs uncompiled: no call of it was recorded") for u in self.unknown))


def packaged(module: fx.GraphModule, role: CompiledRole) -> GraphCall:
    """A role's package as a callable like `module.forward`, weights taken from the module."""
    assert role.package is not None
    assert role.contract is not None
    weights = [_tensor(attribute(module, name)) for name, _ in role.contract.weights]
    package = Package(role.package, role.contract, weights)
    numbers = numbers_of(module, role.tensors)
    if numbers is None:
        return package  # type: ignore[return-value]
    is_tensor = role.tensors

    def call(*arguments: Value) -> tuple[Value, ...]:
        tensors, others = iter(package(*arguments)), iter(numbers.forward(*arguments))
        return tuple(next(tensors) if tensor else next(others) for tensor in is_tensor)

    return call


def by_samples(one: GraphCall, several: GraphCall, of_one: CompiledRole, of_several: CompiledRole) -> GraphCall:
    """`one` for calls of one sample, `several` for the others, by the first size in which what they expect differs."""
    if of_one.contract is None or of_several.contract is None:
        return several  # torch.compile takes any size
    expected = zip(of_one.contract.inputs, of_several.contract.inputs, strict=True)
    sizes = (
        (place, axis)
        for (place, single), (_, more) in expected
        for axis, (size, many) in enumerate(zip(single.sizes, more.sizes, strict=True))
        if size == 1 and isinstance(many, str)
    )
    found = next(sizes, None)
    if found is None:
        return one  # no size of it counts samples
    place, axis = found

    def call(*arguments: Value) -> tuple[Value, ...]:
        tensor = arguments[place]
        return (one if isinstance(tensor, torch.Tensor) and tensor.size(axis) == 1 else several)(*arguments)

    return call


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)  # the graph's own: it follows where the model has its values (own.py)
    return value
