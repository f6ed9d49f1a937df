"""Captures a model for any number of samples per call, if numbers prove that it treats each sample independently.

before: two recorded calls, of as many samples as the pipeline was asked for
after:  a model captured from a call of several different samples and a call of one, so that their number is a size
        a model captured from calls of one sample, if its forward writes the number of samples into the graph; calls of
        several are then run sample by sample
refuses when: the model on several samples at once does not give what it gives on each alone; then it is captured at the
recorded number, and `unbatched` says why

Which arguments hold samples is tried and not guessed: at first all tensors whose first size is that of the latent,
then one fewer (a mask that all samples share), then one more (two images a sample).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._dynamo.exc import UserError
from torch.utils import _pytree as pytree

from mccompile.capture.alone import NotAlone, capture_alone
from mccompile.capture.arguments import Arguments, numbers_written, of_other_length
from mccompile.capture.capture import capture
from mccompile.capture.errors import CaptureError, ExportError, IdentityError, NoBlocksError, first_line
from mccompile.capture.export import without_defaults
from mccompile.capture.rewritten import settled
from mccompile.capture.run import one_for_all
from mccompile.capture.types import CapturedModel
from mccompile.capture.uncollected import uncollected
from mccompile.capture.verify import close

_COUNTS = (2, 3, 5, 7)  # of samples
_MIXED = "its output on two samples at once is not what it gives on each alone"


@dataclass(frozen=True, slots=True)
class _Sampled:
    """A call of one sample, as flat leaves.

    held: the leaves that hold samples along their first axis; varied: those of them that differ between the samples
    that are tried (a model may read the positions of its first sample alone).
    """

    leaves: tuple[object, ...]
    spec: pytree.TreeSpec
    held: tuple[bool, ...]
    varied: tuple[bool, ...]

    def call(self, leaves: Sequence[object]) -> Arguments:
        return pytree.tree_unflatten(list(leaves), self.spec)

    def one(self) -> Arguments:
        return self.call(self.leaves)

    def sample(self, number: int) -> Arguments:
        """A call of another sample: floating-point inputs differ, the others are repeated."""
        return self.call([_other(x, number) if v else x for x, v in zip(self.leaves, self.varied, strict=True)])

    def several(self, count: int) -> Arguments:
        """A call of `count` samples, all of them different."""

        def leaf(value: object, held: bool, varied: bool) -> object:
            return torch.cat([_other(value, i if varied else 0) for i in range(count)]) if held else value

        return self.call([leaf(*x) for x in zip(self.leaves, self.held, self.varied, strict=True)])


def _other(value: object, number: int) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value * (-0.5) ** number + number if number and value.is_floating_point() else value


@uncollected()
def capture_batched(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]
) -> tuple[CapturedModel, tuple[Arguments, Arguments]]:
    """The captured model, and both calls as calls of one sample (unchanged if `unbatched` gives a reason).

    A model that cannot be captured whole is captured with its blocks as its own code (`opaque` says why), for any
    number of samples. probe, second: as for `capture`, whose errors are raised where that fails too.
    """
    try:
        return _captured(model, probe, second)
    except (ExportError, IdentityError, NoBlocksError) as whole:
        recorded = without_defaults(model, probe), without_defaults(model, second)
        written = numbers_written(model, recorded[0], tensors=True)
        try:
            latent = _latent(*recorded)
            given = settled(model, recorded[0], latent), settled(model, recorded[1], latent)
            return capture_alone(model, *given, f"{whole.title}: {whole.cause}", written), given
        except NotAlone as alone:
            besides = f"its blocks alone cannot be captured either: {alone}"
            raise type(whole)(whole.place, whole.cause, whole.remedy, besides) from whole


def _check_as_graph(model: nn.Module, probe: Arguments, second: Arguments) -> None:
    """Raises ExportError (MC0401) for a forward that no graph of operators can stand for, by its arguments."""
    place = f"{type(model).__name__}.forward"
    for one in numbers_written(model, probe):
        raise ExportError(place, f"forward writes into its argument `{one}`", "let forward return what it changes")
    for name in of_other_length(probe, second):
        raise ExportError(place, f"`{name}` is a list of another length in each call", "give it as a tensor")


@dataclass(frozen=True, slots=True)
class CaptureWay:
    """How a model was captured: the calls that `capture` was given, and why the number of samples may not vary."""

    calls: tuple[Arguments, ...]
    unbatched: str


def _captured(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]
) -> tuple[CapturedModel, tuple[Arguments, Arguments]]:
    """As `capture_batched`, of the whole model."""
    captured, given, _ = capture_way(model, probe, second)
    return captured, given


def capture_way(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]
) -> tuple[CapturedModel, tuple[Arguments, Arguments], CaptureWay]:
    """The whole model captured, both calls as calls of one sample, and the way that was taken. Raises CaptureError."""
    given = without_defaults(model, probe), without_defaults(model, second)
    _check_as_graph(model, *given)
    latent = _latent(*given)
    count = _samples(given[0].get(latent))
    one, small = (_first(call, count) for call in given)
    number = _how_many(one, small)
    held, reason = _held(model, one, number, latent, _marked(given[0], count))
    if held is not None:
        try:
            captured, way = _at_either_size(model, held, one, small)
        except CaptureError as error:
            way = CaptureWay((one, small), error.cause)
            captured = capture(model, one, small, unbatched=error.cause)
            names = (node.name for node in captured.module.graph.find_nodes(op="placeholder"))
            each = tuple(name for name, own in zip(names, held.held, strict=True) if own)
            return replace(captured, each=each), (one, small), way
        else:
            why = (*(m for kind in captured.kinds for m in kind.mixing), *captured.refusals)
            if not why:
                return captured, (one, small), way
            other = CaptureWay(given, why[-1].reason)
            alone = capture(model, *given, unbatched=other.unbatched)
            fewer = _left_out(alone) < _left_out(captured)
            return (alone, given, other) if fewer else (captured, (one, small), way)
    return capture(model, *given, unbatched=reason), given, CaptureWay(given, reason)


def _at_either_size(
    model: nn.Module, held: _Sampled, one: Arguments, small: Arguments
) -> tuple[CapturedModel, CaptureWay]:
    """The model captured from several samples at the first size, or at the second, if it treats the first otherwise.

    A model may have a table for one size, and compute it for others. held: the samples of `one`.
    """
    way = CaptureWay((held.several(_how_many(one, small)), small, one), "")
    try:
        return capture(model, *way.calls), way
    except ExportError as error:
        if not isinstance(error.__cause__, UserError):  # of constraints: a size became a constant
            raise
        again = replace(held, leaves=tuple(pytree.tree_leaves(small)))
        way = CaptureWay((again.several(_how_many(small, one)), one, small), "")
        try:
            return capture(model, *way.calls), way
        except CaptureError:
            raise error from None


def _left_out(captured: CapturedModel) -> tuple[int, int]:
    """How much of a model does not run on selected rows: what is refused, and what is computed over all tokens."""
    return len(captured.refusals), sum(len(kind.mixing) for kind in captured.kinds)


def _latent(probe: Arguments, second: Arguments) -> str:
    """The name of the tensor that has most sizes that differ between the calls."""

    def varying(name: str) -> int:
        one, two = probe[name], second.get(name)
        if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor) or not one.dim():
            return -1
        return sum(a != b for a, b in zip(one.shape, two.shape, strict=True)) if one.dim() == two.dim() else -1

    return max(probe, key=varying, default="")


def _samples(latent: object) -> int:
    """The first size of the latent."""
    return latent.size(0) if isinstance(latent, torch.Tensor) and latent.dim() else 1


def _holds_samples(value: object, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == count


def _first(call: Arguments, count: int) -> Arguments:
    """The call of its first sample alone."""

    def leaf(value: object) -> object:
        return value[:1].clone() if isinstance(value, torch.Tensor) and _holds_samples(value, count) else value

    counted = {k for k, v in call.items() if isinstance(v, list | tuple) and len(v) == count}
    cut = {k: one_for_all(v) if k in counted else v for k, v in call.items()}
    return {k: pytree.tree_map(leaf, v) for k, v in cut.items()}


def _how_many(one: Arguments, small: Arguments) -> int:
    """A number of samples that makes no size of the first call one of the second: sizes tell axes apart.

    Two samples of five frames and one of ten would make `samples * frames` look like a constant.
    """
    first, second = _leaves(one), _leaves(small)
    both = min(len(first), len(second))  # calls of different forms are refused later, with a reason
    pairs = [(x, y) for x, y in zip(first[:both], second[:both], strict=True) if x.dim() == y.dim()]
    sizes = {(a, b) for x, y in pairs for a, b in zip(x.shape, y.shape, strict=True)}
    return next((n for n in _COUNTS if all(n * a != b and a != n * b for a, b in sizes)), _COUNTS[0])


def _leaves(call: Arguments) -> list[torch.Tensor]:
    return [x for x in pytree.tree_flatten(call)[0] if isinstance(x, torch.Tensor)]


def _marked(call: Arguments, count: int) -> list[bool]:
    """For each leaf of the first sample alone, whether the call of `count` samples has one entry for each of them.

    In a call of one sample every first size of 1 may be that of its samples.
    """
    counted = {k for k, v in call.items() if isinstance(v, list | tuple) and len(v) == count}
    cut = {k: one_for_all(v) if k in counted else v for k, v in call.items()}
    return [_holds_samples(x, count) for x in pytree.tree_leaves(cut)]


def _held(
    model: nn.Module, one: Arguments, count: int, latent: str, marked: Sequence[bool]
) -> tuple[_Sampled | None, str]:
    """Which arguments hold samples, and "" or why none do: numbers decide. marked: those that may be one a sample."""
    reason = ""
    at = [path[0] == pytree.MappingKey(latent) for path, _ in pytree.tree_flatten_with_path(one)[0]]
    for sampled in _assignments(one, marked):
        why = _mixes(model, sampled, count)
        if why == _MIXED:
            sampled = _less_varied(model, sampled, count)
            why = _mixes(model, sampled, count) if _varies(sampled, at) else why
        if not why:
            return sampled, ""
        reason = reason or why
    return None, reason


def _varies(sampled: _Sampled, latent: Sequence[bool]) -> bool:
    return any(v and is_latent for v, is_latent in zip(sampled.varied, latent, strict=True))


def _less_varied(model: nn.Module, sampled: _Sampled, count: int) -> _Sampled:
    """The samples alike in those arguments that, varied alone, are not read sample by sample."""
    alone = [tuple(i == j for j in range(len(sampled.leaves))) for i in range(len(sampled.leaves))]
    reads = [v and not _mixes(model, replace(sampled, varied=alone[i]), count) for i, v in enumerate(sampled.varied)]
    return replace(sampled, varied=tuple(reads))


def _assignments(one: Arguments, marked: Sequence[bool]) -> Iterator[_Sampled]:
    """All tensors of one row that are marked; all but one of them; these and one tensor of several rows."""
    leaves, spec = pytree.tree_flatten(one)
    first = [_holds_samples(x, 1) and m for x, m in zip(leaves, marked, strict=True)]
    yield _Sampled(tuple(leaves), spec, tuple(first), tuple(first))
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.dim() > 0]
    for changed in sorted(tensors, key=lambda i: not first[i]):
        held = [not h if i == changed else h for i, h in enumerate(first)]
        if any(held):
            yield _Sampled(tuple(leaves), spec, tuple(held), tuple(held))


def _mixes(model: nn.Module, sampled: _Sampled, count: int) -> str:
    """Why the eager model cannot take several samples in one call; "" where each gets what it gets alone."""
    try:
        with torch.no_grad():
            together = _tensors(model(**sampled.several(count)))
            alone = [_tensors(model(**sampled.sample(i))) for i in range(count)]
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
        return f"it fails on two samples at once: {first_line(error)}"
    if any(len(parts) != len(together) for parts in alone):
        return _MIXED
    for t, *parts in zip(together, *alone, strict=True):
        one_each = t.dim() > 0 and {tuple(p.shape) for p in parts} == {(1, *t.shape[1:])}
        if not one_each or not close(t, torch.cat(parts)):
            return _MIXED
    return ""


def _tensors(result: object) -> list[torch.Tensor]:
    return [x for x in pytree.tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
