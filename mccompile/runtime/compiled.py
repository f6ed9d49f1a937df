"""CompiledModel: stands in for `pipe.transformer`, with its signature and its outputs, under a policy."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.types import CapturedModel
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.runtime.clock import Clock
from mccompile.runtime.errors import InputMismatch, NoClock
from mccompile.runtime.execute import Backend
from mccompile.runtime.runner import Runner
from mccompile.runtime.shared import Value
from mccompile.runtime.trace import Event


class CompiledModel(nn.Module):
    """A model under a policy. Everything but `forward` and `cache_context` is the model's own.

    clock: says which step a call is; set by the driver of the pipeline, or by hand (runtime.clock.Timeline).
    """

    def __init__(
        self, model: nn.Module, lowered: LoweredModel, bound: BoundPolicy, backend: Backend, fold: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.clock: Clock | None = None
        self.runner = Runner(lowered, bound, backend, fold)
        self._branch = "cond"

    def __getattr__(self, name: str) -> object:
        """The model's own attributes: config, dtype, device and the rest."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    @contextlib.contextmanager
    def cache_context(self, name: str, **_: object) -> Iterator[None]:
        """Names the guidance branch of the calls inside, as diffusers' CacheMixin does."""
        before, self._branch = self._branch, name
        try:
            yield
        finally:
            self._branch = before

    def set_parameters(self, **values: float) -> None:
        """New parameter values for the next requests; nothing is compiled. Raises PlanError for bad ones."""
        bound = self.runner.bound
        self.runner.rebind(bind(bound.ir, {**bound.values, **values}))

    @property
    def events(self) -> list[Event]:
        """Every decision since the model was compiled or `events.clear()` was called."""
        return self.runner.events

    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """The model's forward under the policy. Raises NoClock, InputMismatch and what the clock raises."""
        if self.clock is None:
            raise NoClock
        call = dict(inspect.signature(self.model.forward).bind(*args, **kwargs).arguments)
        as_dict = bool(call.get("return_dict", _default(self.model, "return_dict")))
        captured = self.runner.lowered.captured
        inputs = bind_call(captured, self.model, {**call, "return_dict": False} if "return_dict" in call else call)
        moment = self.clock.moment(self._branch, call)
        flat = self.runner.call(inputs, moment)
        result = pytree.tree_unflatten(list(flat), captured.out_spec)
        if as_dict and isinstance(result, tuple):
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=result[0])
        return result


def bind_call(captured: CapturedModel, model: nn.Module, call: Mapping[str, object]) -> dict[str, Value]:
    """The captured graph's inputs from a call's keyword arguments.

    Raises InputMismatch if the call has other arguments or other constants than the captured one.
    """
    parameters = inspect.signature(model.forward).parameters
    given = {k: call[k] for k in parameters if k in call}
    given = {k: v for k, v in given.items() if not (v is None and parameters[k].default is None)}
    flat, spec = pytree.tree_flatten_with_path(given)
    wanted = captured.in_spec
    if pytree.tree_structure(given) != wanted and spec != wanted:
        known = ", ".join(f"`{n}`" for n in (*captured.inputs, *(n for n, _ in captured.constants)))
        raise InputMismatch(type(model).__name__, f"it passes {', '.join(given)}; captured were {known}")
    constants = dict(captured.constants)
    names = iter(captured.inputs)
    inputs: dict[str, Value] = {}
    for path, value in flat:
        place = pytree.keystr(path)
        if place in constants:
            if constants[place] != value:
                raise InputMismatch(type(model).__name__, f"{place} is {value!r}, captured was {constants[place]!r}")
        else:
            inputs[next(names)] = value  # type: ignore[assignment]
    return inputs


def _default(model: nn.Module, name: str) -> object:
    parameter = inspect.signature(model.forward).parameters.get(name)
    return False if parameter is None else parameter.default
