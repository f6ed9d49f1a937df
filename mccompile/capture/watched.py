"""Runs a model's own forward with its blocks watched, passed by, or as the place to stop.

The model's code around its blocks runs as it is. What stands in a block's place is there for one run only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import renewed

Act = Callable[[tuple[object, ...], dict[str, object]], object]  # runs in a block's place, on its arguments


@dataclass(frozen=True, slots=True)
class Met:
    """One call of a block, as flat leaves: what it was given and what it returned.

    versions: of the tensors among the arguments when the call began. after: the same when it ended. left: of the
    tensors that it returned, when it ended.
    """

    path: str
    spec: pytree.TreeSpec  # of (args, kwargs)
    given: tuple[object, ...]
    versions: tuple[int, ...]
    after: tuple[int, ...]
    out_spec: pytree.TreeSpec
    results: tuple[object, ...]
    left: tuple[int, ...]


class Stopped(BaseException):
    """Leaves a forward at a block, with the value wanted of it; not an Exception, so that no handler takes it."""

    def __init__(self, value: tuple[object, ...]) -> None:
        super().__init__()
        self.value = value


def instead(acts: Mapping[nn.Module, Act]) -> contextlib.AbstractContextManager[None]:
    """Inside, these modules run these acts in place of their forward."""

    def forward_of(act: Act) -> Callable[..., object]:
        return lambda *args, **kwargs: act(args, kwargs)

    return forwards({module: forward_of(act) for module, act in acts.items()})


@contextlib.contextmanager
def forwards(given: Mapping[nn.Module, Callable[..., object]]) -> Iterator[None]:
    """Inside, these modules have these forwards. Afterwards each has what it had."""
    before = {module: vars(module).get("forward") for module in given}
    for module, forward in given.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own


def watched(model: nn.Module, paths: Sequence[str], call: Mapping[str, object]) -> tuple[list[Met], object]:
    """What the modules at `paths` were called with, in the order of the calls, and what the model returned."""
    met: list[Met] = []

    def act(path: str, module: nn.Module) -> Act:
        own = module.forward

        def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
            given, spec = pytree.tree_flatten((args, kwargs))
            before = versions(given)
            result = own(*args, **kwargs)
            results, out_spec = pytree.tree_flatten(result)
            after, left = versions(given), versions(results)
            met.append(Met(path, spec, tuple(given), before, after, out_spec, tuple(results), left))
            return result

        return run

    with torch.no_grad(), instead({m: act(p, m) for p, m in ((p, model.get_submodule(p)) for p in paths)}):
        result = model(**renewed(call))
    return met, result


def versions(leaves: Sequence[object]) -> tuple[int, ...]:
    """How often each tensor was written to in place; 0 for what cannot be."""
    return tuple(x._version if isinstance(x, torch.Tensor) and not x.is_inference() else 0 for x in leaves)
