"""Calls at sizes that the guards of the captured graph exclude: the model itself is asked, once for each such size.

A call whose values make the model take another branch is refused. That is looked at when these values change.

Where the graph gives what the model gives, the call is run, for guards demand more than is needed (they tell 1 from
other sizes, for example). Where it does not, the forward has taken another branch, and the call is refused. The model
is asked too where the samples of a call share an input that the graph wants for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils import _pytree as pytree

from mccompile.backend.role import Value
from mccompile.capture.arguments import renewed
from mccompile.capture.errors import CallError, first_line
from mccompile.capture.guards import AT_EACH_SIZE, arguments_of, broken, of_values
from mccompile.capture.run import CAPTURE_THESE, run_full
from mccompile.capture.types import CapturedModel
from mccompile.capture.verify import close, sizes_of
from mccompile.runtime.one_by_one import joined
from mccompile.runtime.one_each import OneEach, sharing
from mccompile.runtime.store import Held

CAPTURE_AGAIN = "capture again, with a call of this size as one of the two"
NO_MEMORY = "DefaultCPUAllocator"  # by whom torch says that the host is out of memory


@contextmanager
def told_of(what: str, model: nn.Module, inputs: Mapping[str, Value], remedy: str = CAPTURE_AGAIN) -> Iterator[None]:
    """An error of torch inside is raised as CallError (MC0405): `what` does not run at the sizes of the call.

    Errors of the memory, of the accelerator and of the compiler say their own cause, and pass as they are.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError, TorchDynamoException):
        raise
    except RuntimeError as error:
        if NO_MEMORY in str(error):
            raise
        why = f"{what} does not run at this size: {first_line(error)}"
        raise CallError(_place(model, inputs), why, remedy) from error


def _place(model: nn.Module, inputs: Mapping[str, Value]) -> str:
    return f"{type(model).__name__}.forward at inputs {sizes_of(tuple(inputs.values()))}"


class NewSizes:
    """The sizes of calls at which a captured graph is known to be the model."""

    def __init__(self, model: nn.Module, captured: CapturedModel) -> None:
        self._model, self._captured = model, captured
        self._names = [node.name for node in captured.module.graph.find_nodes(op="placeholder")]
        self._constants = dict(captured.constants)
        self._known: set[tuple[object, ...]] = set()
        self._told = tuple(guard for guard in captured.guards if of_values(guard))
        self._looked = tuple(name for guard in self._told for name in arguments_of(guard))
        self._values: dict[str, Held] = {}  # what these guards were last looked at with
        self._each = OneEach()

    def knows(self, inputs: Mapping[str, Value]) -> bool:
        """Says whether a call of these sizes was checked before, with what branches of the model look at."""
        return _sizes_of(inputs) in self._known and self._looked_at(inputs)

    def _looked_at(self, inputs: Mapping[str, Value]) -> bool:
        now = self._looking_at(inputs).items()
        return all(name in self._values and self._values[name].same(Held.of(value)) for name, value in now)

    def _looking_at(self, inputs: Mapping[str, Value]) -> dict[str, torch.Tensor]:
        """The inputs of which guards say what they hold: tensors, or those in a container of that name."""
        return {n: v for n, v in inputs.items() if n.startswith(self._looked) and isinstance(v, torch.Tensor)}

    def check(self, inputs: Mapping[str, Value], parts: Sequence[Mapping[str, Value]] = ()) -> None:
        """Raises CallError (MC0405) for a call at whose sizes the graph gives other results than the model.

        inputs: as the captured graph takes them. parts: the same of each sample, where each is run alone.
        """
        leaves = [self._constants[name] if name in self._constants else inputs[name] for name in self._names]
        _, call = pytree.tree_unflatten(leaves, self._captured.in_spec)
        other = next(iter(broken(self._told, call)), None)
        if other is not None:
            found = other.removeprefix("not ") if other.startswith("not ") else f"not {other}"
            why = f"the model takes another branch for what its arguments hold: {found}"
            raise CallError(_place(self._model, inputs), why, CAPTURE_THESE)
        if len(parts) > 1:
            self._compare(call, inputs, "the model gives something else for each sample alone", parts)
        shared = sharing(self._captured, inputs)
        if shared is not None:
            each = f"`{shared.names[0]}` is repeated for each of {shared.count} samples"
            repeated = [self._each.repeated(inputs, shared)]
            self._compare(call, inputs, f"the model gives something else where {each}", repeated)
        others = (f"`{name}` of {dtype}" for name, dtype in self._captured.dtypes if _counts(inputs[name], dtype))
        against = next(iter((*broken(self._captured.guards, call), *others)), "")
        if against and shared is None and len(parts) < 2:
            why = f"the model takes another branch at this size: not {against}"
            written = "the model gives something else at this size than the graph that was made of it"
            self._compare(call, inputs, written if against == AT_EACH_SIZE else why, [inputs])
        self._known.add(_sizes_of(inputs))
        self._values = {name: Held.of(value) for name, value in self._looking_at(inputs).items()}

    def taken(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """The inputs as the graph takes them: what the samples share is repeated for each."""
        return self._each.repeated(inputs, sharing(self._captured, inputs))

    def forget(self) -> None:
        """Frees what was repeated, and what branches of the model were looked at with."""
        self._each.forget()
        self._values = {}

    def _compare(
        self, call: dict[str, object], inputs: Mapping[str, Value], why: str, parts: Sequence[Mapping[str, Value]]
    ) -> None:
        """Raises CallError (MC0405), for the reason `why`, where the graph on these parts does not give the model's."""
        with told_of("the model itself", self._model, inputs, "call it with a size that it takes"):
            found = self._model(**renewed(call))
        with told_of("the captured graph", self._model, inputs):
            given = joined([run_full(self._captured, tuple(part.values())).outputs for part in parts])
        wanted = [x for x in pytree.tree_leaves(found) if isinstance(x, torch.Tensor)]
        made = [x for x in given if isinstance(x, torch.Tensor)]
        if len(wanted) != len(made) or not all(close(a, b) for a, b in zip(wanted, made, strict=True)):
            raise CallError(_place(self._model, inputs), why, CAPTURE_AGAIN)


def _sizes_of(inputs: Mapping[str, Value]) -> tuple[object, ...]:
    return tuple((tuple(v.shape), v.dtype) if isinstance(v, torch.Tensor) else v for v in inputs.values())


def _counts(value: Value, dtype: str) -> bool:
    """Whether a tensor has whole numbers in place of fractions, or the other way about: a timestep of a scheduler.

    Another precision is another matter: `ModelState` tells of a pipeline that was cast.
    """
    return isinstance(value, torch.Tensor) and value.is_floating_point() != ("float" in dtype)
