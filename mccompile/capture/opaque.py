"""The parts of a model whose forward cannot be exported: callables that run the model's own code.

Each is a module without weights of its own, so that a graph can call it. Prelude, postlude and the blocks that do not
follow each other directly run the model's forward, with the blocks before theirs passed by: a block that is passed by
returns the streams that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import Written, read_at, renewed
from mccompile.capture.errors import CaptureBug
from mccompile.capture.watched import Act, Stopped, instead


@dataclass(frozen=True, slots=True)
class OpaqueShape:
    """How one block is called and what it returns, as flat leaves.

    spec, out_spec: of (args, kwargs) and of the result. fixed: the arguments that are always the same, by place.
    streams: the places of the arguments that earlier blocks made, or that enter the first block.
    shared: the places of the other arguments that vary. results: the places of the tensors among what it returns.
    constants: the other leaves of the result, by place. passed: for each of `results` the place of the argument that
    stands for it where the block is passed by.
    """

    module: nn.Module
    spec: pytree.TreeSpec
    fixed: Mapping[int, object]
    streams: tuple[int, ...]
    shared: tuple[int, ...]
    out_spec: pytree.TreeSpec
    results: tuple[int, ...]
    constants: Mapping[int, object]
    passed: tuple[int, ...]

    def returned(self, values: Sequence[object]) -> object:
        """The block's result with these tensors."""
        leaves = dict(self.constants) | dict(zip(self.results, values, strict=True))
        return pytree.tree_unflatten([leaves[i] for i in range(self.out_spec.num_leaves)], self.out_spec)

    def taken(self, result: object) -> tuple[object, ...]:
        """The tensors of the block's result."""
        leaves = pytree.tree_leaves(result)
        return tuple(leaves[i] for i in self.results)

    def given(self, values: Sequence[object]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The block's arguments with these streams and shared values."""
        leaves = dict(self.fixed) | dict(zip((*self.streams, *self.shared), values, strict=True))
        args, kwargs = pytree.tree_unflatten([leaves[i] for i in range(self.spec.num_leaves)], self.spec)
        return args, kwargs


@dataclass(frozen=True, slots=True)
class Stack:
    """A model, its blocks in the order in which they are called, and its call.

    spec: of the keyword arguments. inputs: the places of the leaves that vary. fixed: the other leaves, by place.
    written: the numbers that the forward writes into its arguments; they follow its result.
    """

    model: nn.Module
    blocks: tuple[OpaqueShape, ...]
    spec: pytree.TreeSpec
    inputs: tuple[int, ...]
    fixed: Mapping[int, object]
    written: tuple[Written, ...] = ()

    def run(self, inputs: Sequence[object], acts: Mapping[nn.Module, Act]) -> object:
        """The model's forward with these acts in place of blocks."""
        leaves = dict(self.fixed) | dict(zip(self.inputs, inputs, strict=True))
        call = renewed(pytree.tree_unflatten([leaves[i] for i in range(self.spec.num_leaves)], self.spec))
        with instead(acts):
            result = self.model(**call)
        return (result, read_at(call, self.written)) if self.written else result

    def stopped(self, inputs: Sequence[object], acts: Mapping[nn.Module, Act]) -> tuple[object, ...]:
        """The value with which one of the acts leaves the forward."""
        try:
            self.run(inputs, acts)
        except Stopped as stopped:
            return stopped.value
        raise CaptureBug(f"the forward of {type(self.model).__name__} no longer comes to its blocks")

    def passing(self, count: int, last: Sequence[object] | None) -> dict[nn.Module, Act]:
        """Acts that pass the first `count` blocks by; the last of them returns the tensors `last`, where given."""

        def act(shape: OpaqueShape, values: Sequence[object] | None) -> Act:
            def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
                leaves = pytree.tree_leaves((args, kwargs))
                return shape.returned([leaves[i] for i in shape.passed] if values is None else values)

            return run

        return {
            shape.module: act(shape, last if number == count - 1 else None)
            for number, shape in enumerate(self.blocks[:count])
        }


class OpaquePrelude(nn.Module):
    """The model up to its blocks: takes its inputs, gives arguments of blocks, `wanted` as (block, place)."""

    def __init__(self, stack: Stack, wanted: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self._own = (stack, tuple(wanted))  # in a tuple: the model is no part of this module

    def forward(self, *inputs: object) -> tuple[object, ...]:
        stack, wanted = self._own
        last = max(block for block, _ in wanted)
        found: dict[tuple[int, int], object] = {}

        def act(block: int, passes: Act) -> Act:
            def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
                leaves = pytree.tree_leaves((args, kwargs))
                found.update({(b, place): leaves[place] for b, place in wanted if b == block})
                if block == last:
                    raise Stopped(tuple(_alone(found[w], inputs) for w in wanted))
                return passes(args, kwargs)

            return run

        passing = stack.passing(last + 1, None)
        return stack.stopped(inputs, {m: act(i, passes) for i, (m, passes) in enumerate(passing.items())})


def _alone(value: object, inputs: Sequence[object]) -> object:
    """A value that nothing writes to in place later on, and that keeps no larger one alive; an input is itself."""
    own = isinstance(value, torch.Tensor) and all(value is not given for given in inputs)
    return value.clone() if isinstance(value, torch.Tensor) and own else value


class OpaqueBlock(nn.Module):
    """A block that directly follows the one before it: takes streams and shared values, gives streams."""

    def __init__(self, shape: OpaqueShape) -> None:
        super().__init__()
        self._own = (shape,)

    def forward(self, *values: object) -> tuple[object, ...]:
        (shape,) = self._own
        args, kwargs = shape.given(values)
        return shape.taken(shape.module(*args, **kwargs))


class ReachedBlock(nn.Module):
    """A block before which the model does something: takes what the block before it gave, then the inputs.

    The first block takes the streams that enter it, if the model gives it something that no graph holds.
    """

    def __init__(self, stack: Stack, index: int) -> None:
        super().__init__()
        self._own = (stack, index)

    def forward(self, *values: object) -> tuple[object, ...]:
        stack, index = self._own
        shape = stack.blocks[index]
        count = len(stack.blocks[index - 1].results) if index else len(shape.streams)
        own = shape.module.forward

        def act(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
            if not index:
                leaves, spec = pytree.tree_flatten((args, kwargs))
                for place, value in zip(shape.streams, values[:count], strict=True):
                    leaves[place] = value
                args, kwargs = pytree.tree_unflatten(leaves, spec)
            raise Stopped(shape.taken(own(*args, **kwargs)))

        return stack.stopped(values[count:], {**stack.passing(index, values[:count]), shape.module: act})


class OpaquePostlude(nn.Module):
    """The model after its blocks: takes what the last block gave, then the inputs; gives its flat outputs."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self._own = (stack,)

    def forward(self, *values: object) -> tuple[object, ...]:
        (stack,) = self._own
        count = len(stack.blocks[-1].results)
        acts = stack.passing(len(stack.blocks), values[:count])
        return tuple(pytree.tree_leaves(stack.run(values[count:], acts)))
