"""What a forward has of one sample inside its own loop over the samples, while it is exported: that of all of them.

before: for i in range(batch): rows.append(f(x[i], mask[i]));  y = torch.stack(rows)
after:  y = f of all samples at once

The loop is gone through once. Inside, `x[i]` stands for the same value of each sample. Rows that a mask selects stay
where they are, and the mask says which of them count: their number differs between the samples, and is not known while
a model is exported. each_rules.py says what may be done with such values. Everything else raises NotEachSample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

RowCount: TypeAlias = int | torch.SymInt
TorchCall: TypeAlias = Callable[[Callable[..., object], tuple[object, ...], Mapping[str, object]], object]


class NotEachSample(RuntimeError):
    """The loop over samples does what is not known to be the same for all samples at once."""


@dataclass(eq=False, slots=True)
class SampleLoop:
    """One loop over the samples of a call. apply: what a function of torch gives. over: whether it has ended."""

    count: torch.SymInt
    apply: TorchCall
    over: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class SampleIndex:
    """The number of the loop's sample, and the number after it (`plus` 1): good for nothing but as an index."""

    loop: SampleLoop
    plus: int = 0

    def __add__(self, more: int) -> SampleIndex:
        return SampleIndex(self.loop, self.plus + more)

    __radd__ = __add__

    def __eq__(self, other: object) -> NoReturn:
        raise NotEachSample("the forward treats some samples otherwise than others, by their number")

    def __bool__(self) -> NoReturn:
        raise NotEachSample("the forward treats the first sample otherwise than others")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False, slots=True)
class RaggedLength:
    """How many rows a sample has: `base`, and for each mask so many times the number of those that it selects."""

    base: RowCount
    counts: tuple[tuple[object, int], ...]

    def __add__(self, other: RowCount | RaggedLength) -> RowCount | RaggedLength:
        if not isinstance(other, RaggedLength):
            return RaggedLength(self.base + other, self.counts)
        roots = [root for root, _ in (*self.counts, *other.counts)]
        found = []
        for place, root in enumerate(roots):
            if not any(root is earlier for earlier in roots[:place]):
                times = sum(n for own, n in (*self.counts, *other.counts) if own is root)
                found += [(root, times)] if times else []
        base = self.base + other.base
        return RaggedLength(base, tuple(found)) if found else base

    __radd__ = __add__

    def __neg__(self) -> RaggedLength:
        return RaggedLength(-self.base, tuple((root, -n) for root, n in self.counts))

    def __sub__(self, other: RowCount | RaggedLength) -> RowCount | RaggedLength:
        return self + (-other)

    def __rsub__(self, other: RowCount) -> RowCount | RaggedLength:
        return -self + other

    def __eq__(self, other: object) -> NoReturn:
        raise NotEachSample("the forward branches on how many rows a mask selects")

    def __bool__(self) -> NoReturn:
        raise NotEachSample("the forward branches on how many rows a mask selects")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False, slots=True)
class RaggedPiece:
    """Some rows of a ragged axis: all of them (mask None), or those that a mask [samples, rows] selects.

    root: what tells one mask from another. negated: whether it selects those that `root` does not.
    """

    rows: RowCount
    mask: torch.Tensor | None = None
    root: object = None
    negated: bool = False

    @property
    def length(self) -> RowCount | RaggedLength:
        if self.mask is None:
            return self.rows
        return self.rows + RaggedLength(0, ((self.root, -1),)) if self.negated else RaggedLength(0, ((self.root, 1),))

    def selects_as(self, other: RaggedPiece) -> bool:
        same = self.root is other.root and self.negated == other.negated and (self.mask is None) == (other.mask is None)
        return same and statically_known_true(self.rows == other.rows)


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """Along `axis` of the data of all samples, the rows of these pieces count, in order."""

    axis: int
    pieces: tuple[RaggedPiece, ...]

    @property
    def length(self) -> RowCount | RaggedLength:
        first, *more = (piece.length for piece in self.pieces)
        for length in more:
            first = first + length
        return first

    def counts_as(self, other: Ragged) -> bool:
        """Whether both have the same rows count, along their axes."""
        if len(self.pieces) != len(other.pieces):
            return False
        return all(a.selects_as(b) for a, b in zip(self.pieces, other.pieces, strict=True))


def _operator(name: str) -> Callable[..., object]:
    """Python looks for operators in the class alone."""
    method = getattr(torch.Tensor, name)
    return lambda own, *args: own.loop.apply(method, (own, *args), {})


@dataclass(frozen=True, eq=False, slots=True)
class EachSample:
    """A tensor of the loop's sample: `data` has that of all samples, along its first axis.

    lone: whether the model sees that axis too, with size 1 (`x[i : i + 1]`); otherwise it does not (`x[i]`).
    ragged: the axis of which rows were selected. root, negated: as of a RaggedPiece, where this is a mask itself.
    """

    data: torch.Tensor
    loop: SampleLoop
    lone: bool = False
    ragged: Ragged | None = None
    negated: bool = False
    root: object = field(default_factory=object)

    __add__, __radd__, __sub__, __rsub__ = map(_operator, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __truediv__, __neg__ = map(_operator, ("__mul__", "__rmul__", "__truediv__", "__neg__"))
    __eq__, __ne__, __lt__, __le__ = map(_operator, ("__eq__", "__ne__", "__lt__", "__le__"))  # type: ignore[assignment]
    __gt__, __ge__, __and__, __or__ = map(_operator, ("__gt__", "__ge__", "__and__", "__or__"))
    __invert__, __getitem__ = map(_operator, ("__invert__", "__getitem__"))
    __iadd__, __isub__, __imul__, __itruediv__ = map(_operator, ("__iadd__", "__isub__", "__imul__", "__itruediv__"))
    __hash__ = None  # type: ignore[assignment]

    @property
    def rank(self) -> int:
        return self.data.dim() - (not self.lone)

    def at(self, axis: int) -> int:
        """The axis of `data` for one that the model sees; not the one of the samples."""
        if not -self.rank <= axis < self.rank:
            raise NotEachSample(f"an axis {axis} of a value of rank {self.rank}")
        found = axis % self.rank + (not self.lone)
        if found == 0:
            raise NotEachSample("the axis of the samples is worked along")
        return found

    def size(self, axis: int | None = None) -> object:
        sizes: list[object] = list(self.data.shape)
        if self.ragged is not None:
            sizes[self.ragged.axis] = self.ragged.length
        seen = [1, *sizes[1:]] if self.lone else sizes[1:]
        return tuple(seen) if axis is None else seen[axis]

    @property
    def shape(self) -> object:
        return self.size()

    @property
    def ndim(self) -> int:
        return self.rank

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dim(self) -> int:
        return self.rank

    def __bool__(self) -> NoReturn:
        raise NotEachSample("the forward branches on a value of one sample")

    def __iter__(self) -> NoReturn:
        raise NotEachSample("the forward goes through the rows of one sample")

    def __getattr__(self, name: str) -> object:
        """A method of tensors."""
        method = getattr(torch.Tensor, name)
        if not callable(method):
            raise NotEachSample(f"`{name}` of a value of one sample")
        return lambda *args, **kwargs: self.loop.apply(method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:  # fmt: skip
        leaves = pytree.tree_leaves((args, kwargs))
        first = next(x for x in leaves if isinstance(x, EachSample))
        return first.loop.apply(func, args, kwargs or {})


@dataclass(frozen=True, eq=False, slots=True)
class MaskPositions:
    """Where a mask [rows] of one sample is true: `torch.nonzero` of it. column: whether as [n, 1], not as [n]."""

    mask: EachSample
    column: bool

    def flatten(self) -> MaskPositions:
        return MaskPositions(self.mask, column=False)

    def squeeze(self, axis: int) -> MaskPositions:
        if not self.column or axis not in (1, -1):
            raise NotEachSample("positions that a mask selects are squeezed otherwise than [n, 1] is")
        return self.flatten()

    def __getitem__(self, index: object) -> MaskPositions:
        match index:
            case (slice() as all_rows, int(0 | -1)) if self.column and all_rows == slice(None):
                return self.flatten()
        raise NotEachSample("some of the positions that a mask selects are taken")

    def numel(self) -> RowCount | RaggedLength:
        return RaggedPiece(0, self.mask.data, self.mask.root, self.mask.negated).length

    def size(self, axis: int) -> object:
        return self.shape[axis]

    @property
    def shape(self) -> tuple[object, ...]:
        return (self.numel(), 1) if self.column else (self.numel(),)

