"""The axes of a value as products of samples, frames and places, and those that it has where its tokens are together.

A token is a place in a frame. A block that attends within a frame has values [samples * frames, places, channels]; one
that attends along time has [samples * places, frames, channels]. Together, both are [samples, tokens, channels].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mccompile.capture.facts import Extent
from mccompile.capture.moves import AxisMap

SAMPLES, FRAMES, PLACES, TOKENS = "samples", "frames", "places", "tokens"
Factor: TypeAlias = str | int  # SAMPLES, FRAMES, PLACES, or the number of an axis of another sort
Factors: TypeAlias = tuple[Factor, ...]
ONE: Extent = (1, 1)
TOGETHER = "tokens_together"  # in the meta of a value that was put together: the axis of its tokens


class Unfit(Exception):
    """An operator cannot run on tokens that are together."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Which factors make each axis of a value; an axis of another sort (channels, heads, text) has none.

    varies: whether the value has an entry for each token; otherwise its frames and places are repeated.
    """

    axes: tuple[tuple[str, ...], ...]
    varies: bool

    @property
    def items(self) -> tuple[Factor, ...]:
        """The axes where the tokens are together: SAMPLES, TOKENS, and the numbers of the others.

        The tokens lie where the last axis of frames or places lies; where there is none, behind the samples.
        """
        last = max((i for i, own in enumerate(self.axes) if own and SAMPLES not in own), default=None)
        found: list[Factor] = []
        for i, own in enumerate(self.axes):
            if not own:
                found.append(i)
            if SAMPLES in own:
                found.append(SAMPLES)
            if self.varies and (i == last or (last is None and SAMPLES in own)):
                found.append(TOKENS)
        return tuple(found)

    @property
    def folded(self) -> list[Factors]:
        """The factors of each axis, as the model has them."""
        return [own or (i,) for i, own in enumerate(self.axes)]

    @property
    def together(self) -> list[Factors]:
        """The factors of each of `items`."""
        return [(FRAMES, PLACES) if item == TOKENS else (item,) for item in self.items]

    def place(self, axis: int) -> int:
        """Where an axis of another sort lies among `items`. Raises Unfit for an axis of samples or tokens."""
        axis %= len(self.axes)
        if axis not in self.items:
            raise Unfit
        return self.items.index(axis)


def times(*extents: Extent) -> Extent:
    one, two = 1, 1
    for extent in extents:
        one, two = one * extent[0], two * extent[1]
    return one, two


def moved(own: Apart, groups: AxisMap, old: Sequence[Extent], new: Sequence[Extent], sizes: dict[str, Extent]) -> Apart:
    """The factors of what a layout operator makes. Raises Unfit where it mixes them with axes of another sort."""
    axes: list[tuple[str, ...]] = [()] * len(new)
    for group in groups:
        left = [factor for axis in group.old for factor in own.axes[axis]]
        if not left:
            continue
        if any(not own.axes[axis] and old[axis] != ONE for axis in group.old):
            raise Unfit
        for axis in group.new:
            taken: list[str] = []
            while left and (times(*(sizes[f] for f in taken)) != new[axis] or sizes[left[0]] == ONE):
                taken.append(left.pop(0))
            if times(*(sizes[f] for f in taken)) != new[axis]:
                raise Unfit
            axes[axis] = tuple(taken)
        if left:
            raise Unfit
    return Apart(tuple(axes), own.varies)


def met(owns: Sequence[Apart]) -> Apart:
    """The factors of what values make that meet element by element, aligned at the last axis. Raises Unfit."""
    rank = max(len(own.axes) for own in owns)
    axes: list[tuple[str, ...]] = [()] * rank
    for own in owns:
        for axis, factors in enumerate(own.axes, start=rank - len(own.axes)):
            if factors and axes[axis] not in ((), factors):
                raise Unfit
            axes[axis] = factors or axes[axis]
    return Apart(tuple(axes), any(own.varies for own in owns))
