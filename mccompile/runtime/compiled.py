"""CompiledModel: stands in for `pipe.transformer`, with its signature and its outputs, under a policy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.backend.role import Value
from mccompile.capture import CapturedModel, flat_inputs
from mccompile.capture.errors import CallError
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.budget import measures
from mccompile.policy.facts import keeps_increment
from mccompile.runtime.blocks import Backend
from mccompile.runtime.budget import Keeping
from mccompile.runtime.clock import Attached, Clock, Moment
from mccompile.runtime.errors import ConfigChanged, NoClock, NoIncrement
from mccompile.runtime.idle import IdleArguments
from mccompile.runtime.increments import Increments
from mccompile.runtime.new_sizes import NewSizes, told_of
from mccompile.runtime.runner import Runner
from mccompile.runtime.stand_in import StandIn, put_transformer, transformer_of
from mccompile.runtime.state import ModelState
from mccompile.runtime.summary import Summary, summarise
from mccompile.runtime.trace import Event

LOG = logging.getLogger("mccompile")


class KeepsCalls(Protocol):
    """Keeps calls while they are made, and makes those again that another process has made and kept."""

    def call(self, runner: Runner, inputs: Mapping[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The model's flat outputs for one call, by the runner or as they were kept."""

    def end(self) -> None:
        """The run is over."""


class CompiledModel(StandIn):
    """A model under a policy. Everything but `forward` and `cache_context` is the model's own.

    clock: says which step a call is. The driver of the pipeline sets it, or the user (runtime.clock.Timeline).
    keeping: how kept tensors are kept, and what the budget required. journal: keeps the calls of a run, or None.
    """

    def __init__(
        self, model: nn.Module, lowered: LoweredModel, bound: BoundPolicy, backend: Backend, fold: bool = True
    ) -> None:
        super().__init__(model)
        self.clock: Clock | None = None
        self.journal: KeepsCalls | None = None
        self.keeping = Keeping(measures(lowered.policy.cache, accelerator=False)[0], None)
        self.runner = Runner(lowered, bound, backend, fold)
        self._branch = "cond"
        self._place: int | None = None  # the step of the pipeline's loop, where `cache_context` says so
        parameter = self.signature.parameters.get("return_dict")
        self._return_dict = _ABSENT if parameter is None else parameter.default
        self._output: type | None = None  # the class of the model's output object, once it is known
        self._config = dict(getattr(model, "config", {}))
        self._undo: list[Callable[[], None]] = []
        self._pipe: object | None = None
        self._given = model  # what the pipeline had in this one's place
        self._idle = IdleArguments(model, lowered.captured)
        self._sizes = NewSizes(model, lowered.captured)
        self._state = ModelState(model, lowered.captured.module)
        self._checked: tuple[Hashable, int] = (None, -1)  # request and row of the last call

    def install(self, pipe: object, clock: Clock) -> None:
        """Takes the place of `pipe.transformer`, and of its integration step if the policy keeps increments.

        `undo` gives both back. Whatever was compiled into this pipeline before is undone first. Raises NoIncrement
        (MC0608) if the pipeline's steps cannot be taken over, and what the clock raises.
        """
        self.undo()
        before = transformer_of(pipe)
        assert before is not None
        if isinstance(before, CompiledModel) and before._pipe is pipe:
            before.undo()
        if isinstance(clock, Attached):
            clock.attach(self._ended)
            self._undo.append(clock.detach)
        if keeps_increment(self.runner.bound.ir):
            try:
                self._undo.append(Increments.attach(pipe, self.runner, clock).detach)
            except NoIncrement:
                self.undo()
                raise
        self.clock, self._pipe = clock, pipe
        self._given = self.model if isinstance(before, StandIn) else before
        put_transformer(pipe, self)

    def undo(self) -> nn.Module:
        """Gives the pipeline its own transformer back and returns it.

        A transformer that took this one's place in the meantime stays where it is.
        """
        pipe, self._pipe = self._pipe, None
        if pipe is not None and transformer_of(pipe) is self:
            put_transformer(pipe, self._given)
        while self._undo:
            self._undo.pop()()
        return self._given

    def _ended(self) -> None:
        """A generation is over, whatever ended it."""
        self._branch, self._place = "cond", None
        told = self.summary()
        for warning in told.warnings if told.complete else ():
            LOG.warning(warning)

    @contextlib.contextmanager
    def cache_context(self, name: str, *, step_index: int | None = None, **_: object) -> Iterator[None]:
        """Names the guidance branch of the calls inside, and their step, as diffusers' CacheMixin does."""
        before = self._branch, self._place
        self._branch, self._place = name, step_index
        try:
            yield
        finally:
            self._branch, self._place = before

    def set_parameters(self, **values: float) -> None:
        """Gives parameters new values for the next requests. Nothing is compiled. Raises PolicyError for bad values."""
        bound = self.runner.bound
        self.runner.rebind(bind(bound.ir, {**bound.values, **values}))

    @property
    def captured(self) -> CapturedModel:
        """The captured model: pass it to `compile` to try another policy."""
        return self.runner.lowered.captured

    @property
    def events(self) -> list[Event]:
        """Every decision since the model was compiled or `events.clear()` was called."""
        return self.runner.events

    def summary(self) -> Summary:
        """What the latest generation came to; `str` of it is for people."""
        runner = self.runner
        return summarise(
            runner.lowered.policy, runner.events, runner.notes, runner.last_step, runner.decided, runner.not_finite()
        )

    def clear(self) -> None:
        """Frees what finished generations left: their events, what was kept for them, and values of their inputs."""
        self.runner.clear()

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """The model's forward under the policy. Raises NoClock, CallError and what the clock raises."""
        call = self.arguments_of(*args, **kwargs)
        keys_of = getattr(self.model, "key_values_argument", None)
        if keys_of is not None and call.get(keys_of):
            return self._with_key_values(call, keys_of)
        return self._run(call, self._moment(call))

    def _with_key_values(self, call: dict[str, object], argument: str) -> object:
        """A call that asks for keys and values of the leading chunks (its last output). They are read from the buffers.

        Under a policy that keeps none, the model itself runs.
        """
        if call.get("return_dict", self._return_dict) is True:
            place = type(self.model).__name__
            raise CallError(place, "keys are asked for in an output object", "pass return_dict=False")
        moment = self._moment(call)
        if not self.runner.engine.uses_rows:
            self.runner.note_whole(moment, "structure not captured")
            return self.model(**call)
        result = self._run({**call, argument: 0}, moment)
        assert isinstance(result, tuple)
        return *result[:-1], self.runner.leading_key_values(moment, int(call[argument]))  # type: ignore[call-overload]

    def _moment(self, call: dict[str, object]) -> Moment:
        if self.clock is None:
            raise NoClock
        return self.clock.moment(self._branch, call, self._place)

    def _inputs(self, asked: dict[str, object]) -> tuple[object, ...]:
        """The captured inputs of a call. Raises CallError (MC0405) for arguments that the graph cannot take."""
        captured = self.runner.lowered.captured
        try:
            return flat_inputs(captured, asked)
        except CallError:
            plain = self._idle.without(asked)
            if plain is None:
                raise
        return flat_inputs(captured, plain)

    def _check_model(self, moment: Moment) -> None:
        """Looks at the model when a request begins, and at each row where the user's code runs between rows.

        Raises ModelChanged (MC0612) before the step.
        """
        request, row = self._checked
        begins = moment.request != request or moment.row < row
        if (begins or (moment.visited and moment.row > row)) and self._state.changed():
            self.runner.weights_changed()
            self._idle.forget()
        self._checked = moment.request, moment.row

    def _run(self, call: dict[str, object], moment: Moment) -> object:
        as_dict = call.get("return_dict", self._return_dict) is True
        captured = self.runner.lowered.captured
        config = dict(getattr(self.model, "config", {}))
        if config != self._config:
            changed = [f"{k}: {self._config.get(k)} -> {v}" for k, v in config.items() if self._config.get(k) != v]
            raise ConfigChanged(type(self.model).__name__, ", ".join(changed))
        asked = {**call, "return_dict": False} if self._return_dict is not _ABSENT else call
        inputs = dict(zip(captured.inputs, self._inputs(asked), strict=True))
        self._sizes.check(inputs)
        self._check_model(moment)
        flat = self._flat(inputs, moment)
        result = pytree.tree_unflatten(list(flat), captured.out_spec)
        return self._wrapped(call, result) if as_dict else result

    def _wrapped(self, call: dict[str, object], result: object) -> object:
        """A result as the model itself returns it. In which class, the model says once, by running the call."""
        if self._output is None:
            self._output = type(self.model(**call))
        if isinstance(result, self._output):
            return result
        return self._output(*result) if isinstance(result, tuple) else self._output(result)

    def _flat(self, inputs: dict[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The flat outputs of a call. Raises CallError (MC0405) where the captured graph does not run at its sizes."""
        with told_of("the captured graph", self.model, inputs):
            if self.journal is not None:
                return self.journal.call(self.runner, inputs, moment)
            return self.runner.call(inputs, moment)


_ABSENT = object()

