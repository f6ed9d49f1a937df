"""Whether the forward of a model remembers earlier calls: a captured graph would hold what one of them did.

Caches that others patch into the class of a model work in this way. They count their calls, and keep what the last one
returned. The model is asked the same twice. What is then another number, word or tensor was carried over.

before: a model, and a call of it;  after: nothing has changed but what the model notes of a call
refuses when: a setting, a global of the model's code, a buffer or another tensor that it holds is another after the
second call than after the first (ModelRemembers, MC0615); or an argument is another after a call (ExportError, MC0401)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import PLAIN, copied
from mccompile.capture.errors import ExportError
from mccompile.runtime.called import CalledCode
from mccompile.runtime.errors import ModelRemembers
from mccompile.runtime.reached import TORCH, Same, attributes_of, leaves_in, parts_of, told
from mccompile.runtime.settings import PROCESSOR, bases_of
from mccompile.runtime.untouched import Untouched

Notes = Mapping[str, object]


def runs_at(model: nn.Module, call: Mapping[str, object]) -> bool:
    """Whether a model itself runs at the sizes of a call: one that was recorded from a pipeline never ran."""
    try:
        with torch.no_grad():
            model(**call)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
        return False
    return True


@torch.no_grad()
def check_remembers_nothing(model: nn.Module, call: Mapping[str, object]) -> None:
    """Calls the model once, or three times where the first call leaves something in it. call: keyword arguments.

    A model that does not run is left to capture. Raises ModelRemembers (MC0615), and ExportError (MC0401) where the
    forward puts another tensor into its arguments: keys and values of the last chunks, which a later call is given.
    What it writes into a tensor is left to capture, and so are numbers.
    """
    asked = copied(call)
    before, code, given = Untouched(model), CalledCode(model), _marks(asked)
    if not runs_at(model, asked):
        return  # capture tells why
    after = _marks(asked)
    written = next((name for name in (*given, *after) if given.get(name) != after.get(name)), "")
    if written:
        place, cause = f"{type(model).__name__}.forward", f"forward writes into its argument `{written}`"
        raise ExportError(place, cause, "let forward return what it changes")
    if before.still() and not code.replaced():
        return  # what a model makes once, such as a table for each size, is made by its first call
    model(**copied(call))
    first, code = _notes(model), CalledCode(model)
    model(**copied(call))
    other = next((name for name, value in _notes(model).items() if not _equal(first.get(name), value)), "")
    if other or code.replaced():
        raise ModelRemembers(type(model).__name__, f"each changes `{other}`" if other else code.replaced())


def _marks(call: Mapping[str, object]) -> Notes:
    """What changes when another value is put into an argument, numbers apart, by the path of each leaf."""
    leaves, _ = pytree.tree_flatten_with_path(dict(call))
    named = ((re.sub(r"[\[\]']+", ".", pytree.keystr(path)).strip("."), leaf) for path, leaf in leaves)
    others = ((name, value) for name, value in named if type(value) not in PLAIN)
    return {name: id(v) if isinstance(v, torch.Tensor) else told(v) for name, v in others}


def _notes(model: nn.Module) -> Notes:
    """By name, the numbers, words and tensors of a model and of its classes, as they are now; weights are left out."""
    found, parts = dict[str, object](), parts_of(model)
    for path, module in model.named_modules():
        at, own, processor = f"{path}." if path else "", vars(module), vars(module).get(PROCESSOR)
        held = {name: value for name, value in own.items() if name not in TORCH} | module._buffers
        held |= {f"{PROCESSOR}.{name}": value for name, value in attributes_of(processor).items()}
        for name, value in held.items():
            found |= _kept(leaves_in(value, f"{at}{name}", parts))
        for base in {base for kind in (type(module), type(processor)) for base in bases_of(kind)}:
            for name, value in vars(base).items():
                if not name.startswith("__"):
                    found |= _kept(leaves_in(value, f"{base.__qualname__}.{name}", parts))
    return found


def _kept(leaves: Iterable[tuple[str, object]]) -> Notes:
    """Leaves as they are now: a later write does not reach them."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else told(value) for name, value in leaves}


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return Same(one) == Same(other)
    return type(one) is type(other) and one == other
