"""Inputs that all samples of a call share, repeated for each of them: a graph of any number of samples wants one each.

A call of one sample does not tell which of its tensors several samples would share. Two videos of one prompt may come
with one text, and the positions of frames may come once for all. Whether a repeated tensor means the same is asked of
the model (new_sizes.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mccompile.backend.role import Value
from mccompile.capture.own import mark_of
from mccompile.capture.types import CapturedModel

KEPT = 16  # repeated tensors: of both guidance branches of a prompt


@dataclass(frozen=True, slots=True)
class Sharing:
    """The inputs of a call that its samples share, and the number of samples."""

    names: tuple[str, ...]
    count: int


def sharing(captured: CapturedModel, inputs: Mapping[str, Value]) -> Sharing | None:
    """What the samples of a call share; None where each has its own of everything, or their number is not known.

    What moves from step to step (the latent, the timestep) has one entry for each sample.
    """
    rows = {name: value.size(0) for name in captured.samples if isinstance(value := inputs[name], torch.Tensor)}
    counts = {rows[name] for name in captured.moving if name in rows}
    if len(counts) != 1:
        return None
    (count,) = counts
    names = tuple(name for name, size in rows.items() if size == 1)
    return Sharing(names, count) if names and count > 1 else None


class OneEach:
    """Repeats what samples share. The same tensor gives the same repeated tensor as long as nothing writes into it."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def repeated(self, inputs: Mapping[str, Value], shared: Sharing | None) -> dict[str, Value]:
        """The inputs, those that are shared repeated for each sample."""
        if shared is None:
            return dict(inputs)
        return {name: self._each(value, shared.count) if name in shared.names else value
                for name, value in inputs.items()}  # fmt: skip

    def _each(self, value: Value, count: int) -> torch.Tensor:
        assert isinstance(value, torch.Tensor)
        if value.is_inference():  # it has no version counter
            return torch.cat([value] * count)
        key = id(value), mark_of(value), count
        if key not in self._made:
            self._made[key] = value, torch.cat([value] * count)  # holding the first keeps its id from being given again
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key][1]

    def forget(self) -> None:
        """Frees what was repeated."""
        self._made.clear()
