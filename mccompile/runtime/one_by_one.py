"""Calls of several samples of a model that was captured for one: each sample is run alone.

Capture has proved that the model treats its samples independently, but its graph holds one number of them. What each
sample is given is taken out once, so that a prompt is the same one in every step. That the samples together are what
the model gives is asked of the model, once for each size (new_sizes.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from mccompile.backend.role import Value
from mccompile.capture.errors import CallError
from mccompile.capture.own import mark_of
from mccompile.capture.run import flat_inputs
from mccompile.capture.types import CapturedModel

KEPT = 4  # parts of each input for each sample: of both guidance branches of two prompts


class OneByOne:
    """Takes calls of several samples apart. The same tensor gives the same parts as long as nothing writes into it."""

    def __init__(self, captured: CapturedModel) -> None:
        self._captured, self._most = captured, 0
        self._made: OrderedDict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def parts(self, inputs: dict[str, Value]) -> list[dict[str, Value]]:
        """The inputs of each sample; those of the call itself where it has one. Raises CallError (MC0405)."""
        count = self._count(inputs)
        if count == 1:
            return [inputs]
        self._most = KEPT * len(inputs) * count
        return [{name: self._part(name, value, i) for name, value in inputs.items()} for i in range(count)]

    def _count(self, inputs: Mapping[str, Value]) -> int:
        """How many samples a call has. Inputs of one entry are those of all samples."""
        held = ((name, inputs[name]) for name in self._captured.each)
        sizes = {name: value.size(0) for name, value in held if isinstance(value, torch.Tensor)}
        counts = {name: size for name, size in sizes.items() if size != 1}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"`{name}` has {size}" for name, size in counts.items())
            raise CallError(f"{self._captured.model_class}.forward", f"{told} samples", "give as many of each")
        return next(iter(counts.values()), 1)

    def _part(self, name: str, value: Value, sample: int) -> Value:
        if name not in self._captured.each or not isinstance(value, torch.Tensor) or value.size(0) == 1:
            return value
        if value.is_inference():  # it has no version counter
            return value.narrow(0, sample, 1).clone()
        key = id(value), mark_of(value), sample
        if key not in self._made:
            self._made[key] = value, value.narrow(0, sample, 1).clone()  # holding the first keeps its id its own
            while len(self._made) > self._most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key][1]

    def forget(self) -> None:
        """Frees what was taken out."""
        self._made.clear()


def first_sample(captured: CapturedModel, call: Mapping[str, object]) -> dict[str, Value]:
    """The captured inputs of a call by name: those of its first sample, where samples are run one by one.

    Raises CallError (MC0405).
    """
    given = flat_inputs(captured, call, one_by_one=True)
    inputs = dict(zip(captured.inputs, given, strict=True))
    return OneByOne(captured).parts(inputs)[0]


def joined(results: Sequence[Sequence[Value]]) -> tuple[Value, ...]:
    """The outputs of several samples, from those of each."""
    return tuple(_joined(values) for values in zip(*results, strict=True)) if len(results) > 1 else tuple(results[0])


def _joined(values: Sequence[Value]) -> Value:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return torch.cat(tensors) if tensors else values[0]
