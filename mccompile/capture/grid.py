"""Proves on numbers how the video tokens lie in the latent. One frame, row or column is perturbed at a time.

The stream that enters the first block is computed twice: for the latent, and for the latent with one slice along one
axis replaced. The tokens that differ must be exactly those of that slice in a frame-major grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import torch
from torch import fx

from mccompile.capture.split import split_prelude
from mccompile.capture.told import told_grid
from mccompile.capture.types import AnyGrid, Assembled, Refusal, TokenGrid

Axes: TypeAlias = tuple[int | None, int, int]


class GridUnproved(Exception):
    """The tokens do not form a grid over three axes of the latent; the message says why."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The latent on its way to the tokens: `module(*inputs)` returns the first stream, tokens on `token_axis`."""

    module: fx.GraphModule
    inputs: tuple[object, ...]
    position: int  # of the latent among the inputs
    token_axis: int
    tokens: tuple[int, int | None] = (0, None)  # the range to look at
    apart: bool = False  # the frames of all samples lie along the first axis, and the tokens of each along the second

    @property
    def latent(self) -> torch.Tensor:
        value = self.inputs[self.position]
        assert isinstance(value, torch.Tensor)
        return value

    def run(self, latent: torch.Tensor) -> torch.Tensor:
        """[tokens, rest] for a latent in place of the recorded one."""
        inputs = (*self.inputs[: self.position], latent, *self.inputs[self.position + 1 :])
        with torch.no_grad():
            (stream,) = self.module(*inputs)
        stream = stream.unflatten(0, (latent.size(0), -1)).flatten(1, 2) if self.apart else stream
        start, stop = self.tokens
        return stream.movedim(self.token_axis, 0).flatten(1)[start:stop]


def touched(embedding: Embedding, base: torch.Tensor, axis: int, start: int) -> torch.Tensor:
    """Which tokens change with one slice of the latent, as a bool vector."""
    latent = embedding.latent.clone()
    chosen = latent.select(axis, start)
    chosen.copy_(chosen * -0.5 + 1)
    return (embedding.run(latent) != base).any(1)


def latent_range(embedding: Embedding) -> tuple[int, int]:
    """(start, stop) of the tokens that the latent reaches; all where they are no one range."""
    with torch.no_grad():
        base, moved = embedding.run(embedding.latent), embedding.run(embedding.latent * -0.5 + 1)
    touched = (moved != base).any(1).nonzero().flatten()
    if len(touched) < 2 or int(touched[-1]) - int(touched[0]) + 1 != len(touched):
        return 0, len(base)
    return int(touched[0]), int(touched[-1]) + 1


def _patch(embedding: Embedding, base: torch.Tensor, axis: int | None) -> int:
    """How many neighbouring slices feed the same tokens."""
    if axis is None:
        return 1
    size, first = embedding.latent.shape[axis], touched(embedding, base, axis, 0)
    if size > 1 and bool(first.all()):
        raise GridUnproved(f"axis {axis} of the latent reaches every token")
    for patch in range(1, size + 1):
        if patch == size or not torch.equal(touched(embedding, base, axis, patch), first):
            return patch
    raise GridUnproved(f"axis {axis} of the latent is empty")


def _check(embedding: Embedding, base: torch.Tensor, axes: Sequence[int | None], patch: Sequence[int]) -> None:
    """Every slice of every axis touches exactly its own plane of the grid."""
    shape = embedding.latent.shape
    sizes = [1 if a is None else shape[a] // p for a, p in zip(axes, patch, strict=True)]
    if base.shape[0] != sizes[0] * sizes[1] * sizes[2]:
        raise GridUnproved(f"{base.shape[0]} tokens are not {' x '.join(map(str, sizes))}")
    for i, axis in enumerate(axes):
        if axis is None:
            continue
        for place in sorted({0, sizes[i] // 2, sizes[i] - 1}):
            expected = torch.zeros(sizes, dtype=torch.bool, device=base.device)
            expected.select(i, place).fill_(True)
            if not torch.equal(touched(embedding, base, axis, place * patch[i]), expected.flatten()):
                raise GridUnproved(f"tokens of slice {place} of axis {axis} are not a plane of a frame-major grid")


def prove_grid(embedding: Embedding, source: str, axes: Axes) -> TokenGrid:
    """The grid of the tokens over three axes of the latent, in the order frames, height, width.

    Raises GridUnproved with the reason.
    """
    base = embedding.run(embedding.latent)
    patch = [_patch(embedding, base, axis) for axis in axes]
    _check(embedding, base, axes, patch)
    return TokenGrid(source, axes, (patch[0], patch[1], patch[2]), embedding.apart)


def _candidates(latent: torch.Tensor, dynamic: Sequence[int]) -> Iterator[Axes]:
    """Axes of the latent that may be frames, height and width.

    dynamic: those that differ between the probes, the batch aside. Where these are two, they are height and width: the
    number of frames is fixed (the axis next to them, before others), or the latent is an image. Where it is one, it is
    the number of frames, and height and width are fixed: the last axes, before others.
    """
    if len(dynamic) == 3:
        yield dynamic[0], dynamic[1], dynamic[2]
    elif len(dynamic) == 2:
        fixed = [a for a in range(1, latent.dim()) if a not in dynamic] if latent.dim() > 4 else []
        for axis in (*reversed(fixed), None):
            yield axis, dynamic[0], dynamic[1]
    elif len(dynamic) == 1 and latent.dim() > 4:
        fixed = [a for a in range(1, latent.dim()) if a not in dynamic]
        for width, height in combinations(reversed(fixed), 2):
            yield dynamic[0], height, width


def embedding_of(captured: Assembled, inputs: Sequence[object], source: str) -> Embedding:
    """The first stream of a captured model as a function of its latent, the user input `source`."""
    stream = captured.streams[0]
    assert stream.token_axis is not None
    prelude = split_prelude(captured, [stream.name])
    return Embedding(prelude.module, tuple(inputs), captured.inputs.index(source), stream.token_axis)


def found_apart(embedding: Embedding, source: str, latent: torch.Tensor, dynamic: Sequence[int]) -> TokenGrid | None:
    """The grid of a stream whose frames lie along its first axis, with those of the other samples (Latte)."""
    with torch.no_grad():
        (stream,) = embedding.module(*embedding.inputs)
    if stream.dim() != 3 or stream.size(0) <= latent.size(0) or stream.size(0) % latent.size(0):
        return None
    for axes in _candidates(latent, dynamic):
        if axes[0] is not None and latent.size(axes[0]) * latent.size(0) == stream.size(0):
            try:
                return prove_grid(embedding, source, axes)
            except GridUnproved:
                continue
    return None


def find_grid(
    captured: Assembled, probe: Sequence[object], second: Sequence[object], source: str
) -> AnyGrid | Refusal:
    """The grid of a model's tokens, or the reason why it has none.

    probe, second: captured inputs at two sizes; source: name of the latent among them.
    """
    position = captured.inputs.index(source)
    if captured.streams[0].token_axis is None:
        return Refusal("grid", "there is no single token axis")
    one, two = probe[position], second[position]
    assert isinstance(one, torch.Tensor)
    assert isinstance(two, torch.Tensor)
    dynamic = [i for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b and i > 0]
    embedding = embedding_of(captured, probe, source)
    by_rows = captured.gather is not None and all(kind.partial is not None for kind in captured.kinds)
    if not by_rows and embedding.token_axis == 1:  # by rows, each frame is a sample of its own
        made = found_apart(replace(embedding, apart=True), source, one, dynamic)
        if made is not None:
            return made
    embedding = replace(embedding, tokens=latent_range(embedding))
    reason = f"`{source}` has {len(dynamic)} axes that change between the probes, not 3"
    others = [embedding_of(captured, second, source)] if captured.opaque else []  # no label says how tokens lie
    for axes in _candidates(one, dynamic):
        try:
            found = prove_grid(embedding, source, axes)
            if all(prove_grid(replace(e, tokens=latent_range(e)), source, axes) == found for e in others):
                return found
            reason = f"axes {axes} of the latent lie in another way at the second call"
        except GridUnproved as unproved:
            reason = str(unproved)
    return told_grid(captured, probe, second, source) or Refusal("grid", reason)
