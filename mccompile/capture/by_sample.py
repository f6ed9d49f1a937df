"""A forward's own loop over its samples, for all samples at once, while it is exported.

before: for i in range(x.size(0)): ... x[i] ...    for a, b in zip(x, y): ...    for i, a in enumerate(x): ...
after:  the body of the loop once, with values of all samples (each_sample.py)
refuses when: the body does what is not known to be the same for all samples at once; the loop would have a constant
number of samples then, which torch.export refuses

Only what goes through the samples is concerned: a range of their number, or a tensor's axis of that size. `range` and
`enumerate` are put into the modules that the model's classes come from, and taken away again.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import renewed
from mccompile.capture.each_rules import applied, each_of, taken
from mccompile.capture.each_sample import EachSample, SampleIndex, SampleLoop
from mccompile.capture.extremes import exchanged
from mccompile.capture.watched import forwards


class LoopMet(Exception):
    """A forward that is exported goes through its samples, and nothing was made ready for it."""


class _Loops:
    """The loops over samples of one export. samples: their number, of each tensor that holds some.

    ready: whether tensors can be indexed with the number of a loop's sample.
    """

    def __init__(self, ready: bool) -> None:
        self.samples: Sequence[torch.SymInt] = ()
        self.ready = ready
        self._running: SampleLoop | None = None

    def counts(self, number: object) -> bool:
        """Whether a number is that of the samples."""
        return isinstance(number, torch.SymInt) and any(statically_known_true(number == n) for n in self.samples)

    def range(self, *bounds: int) -> object:
        """As Python's `range`."""
        ends = bounds[1:] if len(bounds) == 2 and isinstance(bounds[0], int) and bounds[0] == 0 else bounds
        return self._once(SampleIndex) if len(ends) == 1 and self.counts(ends[0]) else builtins.range(*bounds)

    def enumerate(self, items: Iterable[object], start: int = 0) -> Iterator[tuple[object, object]]:
        """As Python's `enumerate`; what comes with a value of the loop's sample has its number."""
        for number, item in builtins.enumerate(items, start):
            parts = item if isinstance(item, tuple) else (item,)
            of_sample = next((x for x in parts if isinstance(x, EachSample)), None)
            yield (number if of_sample is None else SampleIndex(of_sample.loop, start)), item

    def through(self, tensor: torch.Tensor) -> Iterator[object]:
        """What a loop over a tensor's axis of samples goes through."""
        return self._once(lambda loop: each_of(tensor, loop))

    def _once(self, value: Callable[[SampleLoop], object]) -> Iterator[object]:
        """One value for all samples. Where loops run together (`zip`), all end with the one that began first."""
        if not self.ready:
            raise LoopMet
        count, *others = self.samples
        for other in others:
            torch._check(other == count)
        own = self._running is None or self._running.over
        if own:
            self._running = SampleLoop(count, applied)
        loop = self._running
        assert loop is not None
        yield value(loop)
        loop.over = loop.over or own


def _of_sample(index: object) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return any(isinstance(x, SampleIndex) or (isinstance(x, slice) and isinstance(x.start, SampleIndex)) for x in items)


class _Taking(TorchFunctionMode):
    """Lets tensors be indexed with the number of a loop's sample."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:  # fmt: skip
        if func.__name__ == "__getitem__" and isinstance(args[0], torch.Tensor) and _of_sample(args[1]):
            return taken(args[0], args[1])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def loops_once(model: nn.Module, call: Mapping[str, object], places: Sequence[int], ready: bool) -> Iterator[None]:
    """Inside, the model's forward goes through its loops over samples once. It takes keywords only.

    places: of the leaves of the call whose first axis holds samples. ready: False where it is not known yet whether
    there is a loop; the first one raises LoopMet then.
    """
    if not places:
        yield
        return
    loops, own, through = _Loops(ready), model.forward, torch.Tensor.__iter__

    def forward(**arguments: object) -> object:
        leaves = pytree.tree_leaves({name: arguments[name] for name in call})
        loops.samples = [leaves[place].size(0) for place in places]
        with _Taking() if ready else contextlib.nullcontext():
            return own(**arguments)

    def __iter__(tensor: torch.Tensor) -> Iterator[object]:
        return loops.through(tensor) if tensor.dim() and loops.counts(tensor.size(0)) else through(tensor)

    forward.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    torch.Tensor.__iter__ = __iter__
    try:
        with exchanged(model, {"range": loops.range, "enumerate": loops.enumerate}), forwards({model: forward}):
            yield
    finally:
        torch.Tensor.__iter__ = through


def with_other_masks(model: nn.Module, call: Mapping[str, object]) -> list[dict[str, object]]:
    """A further call for the proof, with other masks; none where the model itself does not take them."""
    made = other_masks(call)
    try:
        with torch.no_grad():
            found = [x for x in pytree.tree_leaves(model(**renewed(made))) if isinstance(x, torch.Tensor)]
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return []
    return [made] if all(bool(x.isfinite().all()) for x in found) else []


def other_masks(call: Mapping[str, object]) -> dict[str, object]:
    """The call with other masks: in some samples rows at the front are left out, in others those behind some rows."""

    def other(value: object) -> object:
        if not isinstance(value, torch.Tensor) or not is_mask(value):
            return value
        rows, made = torch.arange(value.size(1), device=value.device), torch.ones_like(value)
        for sample in range(value.size(0)):
            kept = rows % (sample + 2) == 1 if sample % 2 == 0 else rows <= rows.numel() // (sample + 2)
            made[sample] = kept.to(value.dtype)
        return made

    return {name: pytree.tree_map(other, value) for name, value in call.items()}


def is_mask(value: torch.Tensor) -> bool:
    """Whether a tensor [samples, rows] says of each row whether it counts."""
    return value.dim() == 2 and value.size(1) > 1 and bool(value.any()) and bool(((value == 0) | (value == 1)).all())
