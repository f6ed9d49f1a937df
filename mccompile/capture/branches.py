"""Branches of a forward on what its inputs say, while a model is exported: those that both recorded calls take.

before: if torch.all(image == 0): a() else: b()
after:  b(), and the guard `not aten.all.default(aten.eq.Scalar(L['image'], 0))`, which a call must fulfil
refuses when: the calls differ, or the condition is of more than pure operators on inputs

What the branch was is read from runs of the model itself, by the place in its code. A later call of other values is
looked at by the runtime, which reads the condition anew.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import TypeAlias

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import has_side_effect

from mccompile.capture.arguments import renewed

LIBRARY = torch.library.Library("mccompile", "FRAGMENT")
LIBRARY.define("expect(Tensor condition, bool taken) -> ()")
torch.library.register_fake("mccompile::expect", lambda condition, taken: None, lib=LIBRARY)
EXPECT = torch.ops.mccompile.expect.default
has_side_effect(EXPECT)
_LONGEST = 1000  # what a guard may say of values, in letters
BranchesTaken: TypeAlias = Mapping[tuple[CodeType, int], bool]  # by the place in the code


class BranchMet(Exception):
    """A forward that is exported branches on a value, and it is not known which branch the recorded calls take."""


class UnknownCondition(Exception):
    """A condition that cannot be read from the inputs of a call."""


def branches_taken(model: nn.Module, *calls: Mapping[str, object]) -> BranchesTaken:
    """Where the model's code asks whether a value is true, and gets the same answer each time at all calls."""
    answers: dict[tuple[CodeType, int], set[bool]] = {}

    def asked(value: torch.Tensor, place: tuple[CodeType, int]) -> bool:
        answer = torch._C.TensorBase.__bool__(value)
        answers.setdefault(place, set()).add(answer)
        return answer

    with torch.no_grad(), _asking(asked):
        for call in calls:
            model(**renewed(call))
    return {place: next(iter(found)) for place, found in answers.items() if len(found) == 1}


@contextlib.contextmanager
def fixed_branches(taken: BranchesTaken | None) -> Iterator[None]:
    """Inside, the code that is exported takes these branches, and the graph says which. None: not known yet."""

    def asked(value: torch.Tensor, place: tuple[CodeType, int]) -> bool:
        if not isinstance(value, FakeTensor) or value.constant is not None:
            return torch._C.TensorBase.__bool__(value)
        if taken is None:
            raise BranchMet
        if place not in taken:
            return torch._C.TensorBase.__bool__(value)
        torch.ops.mccompile.expect(value, taken[place])
        return taken[place]

    with _asking(asked):
        yield


@contextlib.contextmanager
def _asking(asked: Callable[[torch.Tensor, tuple[CodeType, int]], bool]) -> Iterator[None]:
    def __bool__(value: torch.Tensor) -> bool:
        caller = sys._getframe(1)
        return asked(value, (caller.f_code, caller.f_lasti))

    torch.Tensor.__bool__ = __bool__
    try:
        yield
    finally:
        del torch.Tensor.__bool__


def conditions(module: fx.GraphModule, paths: Sequence[str]) -> tuple[str, ...]:
    """The conditions of an exported graph as guards, which are taken out of it. paths: of its inputs, as people write.

    Raises UnknownCondition.
    """
    names = dict(zip(module.graph.find_nodes(op="placeholder"), paths, strict=True))
    found = []
    for node in module.graph.find_nodes(op="call_function", target=EXPECT):
        text = _written(node.args[0], names)
        found.append(text if node.args[1] else f"not {text}")
        module.graph.erase_node(node)
    return tuple(dict.fromkeys(found))


def _written(value: object, names: Mapping[fx.Node, str]) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(x, names) for x in value)}]"
    if not isinstance(value, fx.Node):
        if not isinstance(value, bool | int | float):
            raise UnknownCondition
        return repr(value)
    if value in names:
        return f"L[{names[value]}]"
    target = value.target
    pure = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and not target._schema.is_mutable
    if not pure or value.kwargs:
        raise UnknownCondition
    text = f"{target}({', '.join(_written(x, names) for x in value.args)})"
    if len(text) > _LONGEST:
        raise UnknownCondition
    return text
