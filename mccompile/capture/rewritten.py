"""Tensors of a call that a forward writes into: caches of the keys and values of earlier chunks (Self-Forcing).

before: two calls whose caches are as they were before the forward ran
after:  the same calls with caches of their own, into which the forward has written; once more would change nothing
refuses when: a second call gives something else, or leaves something else behind; or the forward reads what a call with
other latents wrote (NotAlone)

So a step may be left out: where it would have written, the next step that is computed writes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.alone import NotAlone
from mccompile.capture.arguments import Arguments, copied, renewed

Left = tuple[list[torch.Tensor], list[torch.Tensor]]  # what a forward returns, and the tensors of its call afterwards


def settled(model: nn.Module, call: Mapping[str, object], latent: str) -> Arguments:
    """The call after the forward has written into its tensors; the call itself where it writes into none.

    latent: the argument that each step changes. Raises NotAlone. A model that does not run is left to capture.
    """
    own = copied(call)
    before = _versions(own)
    try:
        _run(model, own)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return dict(call)
    changed = [path for path, version in _versions(own).items() if before[path] != version]
    if changed:
        _check(model, own, latent, changed[0])
        return own
    return dict(call)


def _check(model: nn.Module, call: Arguments, latent: str, place: str) -> None:
    """Raises NotAlone where a step that is left out would be missed by the next one."""
    wanted = _run(model, copied(call))
    again = copied(call)
    if not _same(wanted[1], _tensors(call)) or not _same(_run(model, again)[0], wanted[0]):
        raise NotAlone(f"{_writes(place)} gives or writes something else if called again")
    moved = copied(call)
    value = moved.get(latent)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        _run(model, {**moved, latent: value * -0.5 + 1})
        found = _run(model, moved)
        if not _same(found[0], wanted[0]) or not _same(found[1], wanted[1]):
            raise NotAlone(f"{_writes(place)} reads what the step before wrote there")


def _writes(place: str) -> str:
    return f"its forward writes into its argument `{place}`, and"


def _run(model: nn.Module, call: Mapping[str, object]) -> Left:
    with torch.no_grad():
        result = model(**renewed(call))
    return [x.clone() for x in _tensors(result)], _tensors(call)


def _tensors(value: object) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _versions(call: Mapping[str, object]) -> dict[str, int]:
    """How often each tensor of a call was written to, by its place."""
    found = pytree.tree_flatten_with_path(dict(call))[0]
    return {_name(path): x._version for path, x in found if isinstance(x, torch.Tensor)}


def _name(path: tuple[object, ...]) -> str:
    """A place as `kv_cache.0.k`."""
    return pytree.keystr(path).replace("']['", ".").replace("[", ".").replace("]", "").replace("'", "").strip(".")


def _same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return len(one) == len(two) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))
