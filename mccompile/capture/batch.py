"""Captures a model for any number of samples per call, if numbers prove that it treats each sample independently.

before: two recorded calls with the recorded number of samples
after:  a model captured from a call of two different samples and a call of one sample; their number is a size
refuses when: two samples in one call give other outputs than each sample alone, or the forward writes the number of
samples into the graph. The model is then captured at the recorded number, and `unbatched` says why.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.capture import capture
from mccompile.capture.errors import CaptureError
from mccompile.capture.export import without_defaults
from mccompile.capture.run import one_for_all
from mccompile.capture.types import CapturedModel
from mccompile.capture.verify import close

Arguments = dict[str, object]


def capture_batched(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]
) -> tuple[CapturedModel, tuple[Arguments, Arguments]]:
    """The captured model, and both calls as calls of one sample (unchanged if `unbatched` gives a reason).

    probe, second: as for `capture`, whose errors are raised.
    """
    given = without_defaults(model, probe), without_defaults(model, second)
    count = _samples(*given)
    one, small = (_first(call, count) for call in given)
    both = _doubled(one)
    reason = _mixes(model, one, both)
    if not reason:
        try:
            captured = capture(model, both, small)
        except CaptureError as error:
            reason = error.cause
        else:
            if not captured.refusals:
                return captured, (one, small)
            alone = capture(model, *given, captured.refusals[-1].reason)
            fewer = len(alone.refusals) < len(captured.refusals)
            return (alone, given) if fewer else (captured, (one, small))
    return capture(model, *given, reason), given


def _samples(probe: Arguments, second: Arguments) -> int:
    """The number of samples: the first size of the tensor with the most sizes that differ between the calls."""

    def varying(name: str) -> int:
        one, two = probe[name], second.get(name)
        if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor) or not one.dim():
            return -1
        return sum(a != b for a, b in zip(one.shape, two.shape, strict=False))

    latent = probe[max(probe, key=varying)] if probe else None
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


def _doubled(call: Arguments) -> Arguments:
    """The call with a second sample. Its floating-point inputs differ; its other inputs are repeated."""

    def leaf(value: object) -> object:
        if not isinstance(value, torch.Tensor) or not _holds_samples(value, 1):
            return value
        return torch.cat([value, value * -0.5 + 1 if value.is_floating_point() else value])

    return {k: pytree.tree_map(leaf, v) for k, v in call.items()}


def _mixes(model: nn.Module, one: Arguments, both: Arguments) -> str:
    """Why the eager model cannot take both samples in one call; "" if each gets the outputs that it gets alone."""
    other = pytree.tree_map(lambda v: v[1:] if _holds_samples(v, 2) else v, both)
    try:
        with torch.no_grad():
            together, *alone = (_tensors(model(**call)) for call in (both, one, other))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"it fails on two samples at once: {str(error).strip().splitlines()[0] if str(error) else error!r}"
    for t, a, b in zip(together, *alone, strict=True):
        if t.dim() != a.dim() or t.size(0) != 2 or not close(t, torch.cat([a, b])):
            return "its output on two samples at once is not what it gives on each alone"
    return ""


def _tensors(result: object) -> list[torch.Tensor]:
    return [x for x in pytree.tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
