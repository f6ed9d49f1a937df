"""CompiledModel: stands in for `pipe.transformer`, with its signature and its outputs, under a policy."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.backend.role import Value
from mccompile.capture import CapturedModel, flat_inputs
from mccompile.capture.arguments import give_back, renewed
from mccompile.capture.errors import CallError
from mccompile.capture.types import Refusal
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy, bind, parameters_of
from mccompile.policy.budget import measures
from mccompile.policy.facts import keeps_increment
from mccompile.runtime.adapters import AdapterScales
from mccompile.runtime.blocks import Backend
from mccompile.runtime.budget import Keeping
from mccompile.runtime.clock import Attached, Clock, Moment, SharedClock
from mccompile.runtime.errors import ConfigChanged, NoClock, NoIncrement, UnderAutocast
from mccompile.runtime.idle import IdleArguments
from mccompile.runtime.increments import Increments
from mccompile.runtime.modes import to_eval, to_training
from mccompile.runtime.new_sizes import NewSizes, told_of
from mccompile.runtime.one_by_one import OneByOne, joined
from mccompile.runtime.runner import Runner
from mccompile.runtime.stand_in import ExpertSlot, StandIn, put_transformer, stand_in_of, transformer_of
from mccompile.runtime.state import ModelState
from mccompile.runtime.summary import LatestRun, Ran, Summary, summarise
from mccompile.runtime.trace import Event

LOG = logging.getLogger("mccompile")
OTHER_FORM = "a further guidance pass, of another form than the captured call"  # it skips layers, for example
CLEAN_PASS = "a pass over finished chunks, of another form than the captured call"  # it fills keys, for example


def of_other_form(event: Event) -> bool:
    """Whether an event is of a call that the model itself ran because it has another form than the captured one."""
    return event.why in (OTHER_FORM, CLEAN_PASS)


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
    slot: the place in the pipeline; None: that of its only transformer.
    """

    def __init__(
        self, model: nn.Module, lowered: LoweredModel, bound: BoundPolicy, backend: Backend, fold: bool = True,
        slot: ExpertSlot | None = None,
    ) -> None:
        super().__init__(model)
        self.slot = slot
        self._experts = [self]
        self._latest = LatestRun()
        self.clock: Clock | None = None
        self.journal: KeepsCalls | None = None
        self.keeping = Keeping(measures(lowered.policy.cache, accelerator=False)[0], None)
        self.runner = Runner(lowered, bound, backend, fold)
        self._branch = "cond"
        self._place: int | None = None  # the step of the pipeline's loop, where `cache_context` says so
        parameter = self.signature.parameters.get("return_dict")
        self._return_dict = _ABSENT if parameter is None else parameter.default
        self._output: type | None = None  # the class of the model's output object, once it is known
        self._config = _configured(model)
        self._undo: list[Callable[[], None]] = []
        self._pipe: object | None = None
        self._trained: Sequence[nn.Module] = to_eval(model)
        self._given = model  # what the pipeline had in this one's place
        self._idle = IdleArguments(model, lowered.captured)
        self._sizes = NewSizes(model, lowered.captured)
        self._one_by_one = OneByOne(lowered.captured)
        self._scales = AdapterScales(model, lowered.captured.module)
        self._state = ModelState(model, lowered.captured.module, self._scales.layers)
        self._factor = 1.0  # of all adapters, in the last call
        self._checked: tuple[Hashable, int] = (None, -1)  # request and row of the last call
        self.set_up()

    def join(self, other: CompiledModel) -> None:
        """Takes on a further expert: another transformer of the pipeline, which runs its own part of the steps.

        Both write one log, and are installed, undone, cleared and summed up together.
        """
        self._experts.append(other)
        other._experts, other._latest = self._experts, self._latest
        other.runner.log = self.runner.log
        for each in self._experts:
            each.runner.expert = each.slot or ""

    @property
    def experts(self) -> tuple[CompiledModel, ...]:
        """The compiled transformers of the pipeline, in the order in which they run; this one alone in most of them."""
        return tuple(self._experts)

    def install(self, pipe: object, clock: Clock) -> None:
        """Takes the place of `pipe.transformer`, and of its integration step if the policy keeps increments.

        Every other expert takes its place too. `undo` gives all back. Whatever was compiled into this pipeline before
        is undone first. Raises NoIncrement (MC0608) if the pipeline's steps cannot be taken over, and what the clock
        raises: StepClock raises SecondTransformer (MC0713) for a pipeline with more transformers than were compiled.
        """
        self.undo()
        before = [transformer_of(pipe, each.slot) for each in self._experts]
        for found in map(stand_in_of, before):
            if isinstance(found, CompiledModel) and found._pipe is pipe:
                found.undo()
        clocks = (clock,) * len(before)
        if isinstance(clock, SharedClock):
            clocks = clock.share(tuple(each.slot for each in self._experts))
        self._latest.told = isinstance(clock, Attached)
        if isinstance(clock, Attached):
            clock.attach(self._ended)
            self._undo.append(clock.detach)
        if keeps_increment(self.runner.bound.ir):
            try:
                self._undo.append(Increments.attach(pipe, self.runner, clock).detach)
            except NoIncrement:
                self.undo()
                raise
        for each, own, found in zip(self._experts, clocks, before, strict=True):
            assert found is not None
            each.clock, each._pipe = own, pipe
            each._given = found if stand_in_of(found) is None else each.model
            each._trained = to_eval(each.model)
            put_transformer(pipe, each, each.slot)

    def undo(self) -> nn.Module:
        """Gives the pipeline its own transformers back and returns the one of this one's place.

        A transformer that took this one's place in the meantime stays where it is. What `torch.compile` put around this
        one goes with it. Modules that were in training mode are so again.
        """
        for each in self._experts:
            pipe, each._pipe = each._pipe, None
            if pipe is not None and stand_in_of(transformer_of(pipe, each.slot)) is each:
                put_transformer(pipe, each._given, each.slot)
            while each._undo:
                each._undo.pop()()
            to_training(each._trained)
            each._trained = ()
        return self._given

    def _ended(self) -> None:
        """A generation is over, whatever ended it."""
        for each in self._experts:
            each._branch, each._place = "cond", None
        self._latest.over = True
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
        """Gives parameters new values for the next requests. Nothing is compiled. Raises PolicyError for bad values.

        Experts under different policies get those that their policies have.
        """
        policies = [each.runner.bound.ir for each in self._experts]
        bounds = [each.runner.bound for each in self._experts]
        others = [parameters_of(policy, values, policies) for policy in policies]
        bounds = [bind(b.ir, {**b.values, **own}) for b, own in zip(bounds, others, strict=True)]
        for each, bound in zip(self._experts, bounds, strict=True):
            each.runner.rebind(bound)

    @property
    def captured(self) -> CapturedModel:
        """The captured model: pass it to `compile` to try another policy."""
        return self.runner.lowered.whole

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What of the policies was refused on the model, and why; the same of several experts once."""
        return tuple(dict.fromkeys(refusal for each in self._experts for refusal in each.runner.lowered.refusals))

    @property
    def events(self) -> list[Event]:
        """Every decision since the model was compiled or `events.clear()` was called."""
        return self.runner.events

    def summary(self) -> Summary:
        """What the latest generation came to; `str` of it is for people."""
        events, requests = self.events, self._latest.requests
        ran = [e for e in self._experts if not events or str(e.runner.latest) in requests]
        return summarise(tuple(each._ran() for each in ran or self._experts), events, requests)

    def _ran(self) -> Ran:
        runner, name = self.runner, self.slot or ""
        return Ran(
            name if len(self._experts) > 1 else "", runner.lowered.policy, runner.notes, runner.first_step,
            runner.last_step, tuple(runner.decided), runner.not_finite(),
        )  # fmt: skip

    def clear(self) -> None:
        """Frees what finished generations left: their events, what was kept for them, and values of their inputs."""
        for each in self._experts:
            each.runner.clear()
            each._sizes.forget()
            each._one_by_one.forget()

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *args: object, **kwargs: object) -> object:
        """The model's forward under the policy. Raises NoClock, UnderAutocast, CallError and what the clock raises.

        The model itself runs a further call of a step that has another form than the captured one: guidance that skips
        layers (SD3), or that perturbs attention (LTX-2). So it does with a pass over finished chunks (AnyFlow-FAR).
        """
        call = self.arguments_of(*args, **kwargs)
        for device in {value.device.type for value in call.values() if isinstance(value, torch.Tensor)}:
            if torch.is_autocast_enabled(device):
                raise UnderAutocast(type(self.model).__name__, device)
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
            return self._whole(call, moment, "structure not captured")
        result = self._run({**call, argument: 0}, moment)
        assert isinstance(result, tuple)
        return *result[:-1], self.runner.leading_key_values(moment, int(call[argument]))  # type: ignore[call-overload]

    def _whole(self, call: dict[str, object], moment: Moment, why: str) -> object:
        """A call that the model itself runs, without the policy; its events say why."""
        self.runner.note_whole(moment, why)
        return self.model(**call)

    def _moment(self, call: dict[str, object]) -> Moment:
        if self.clock is None:
            raise NoClock
        moment = self.clock.moment(self._branch, call, self._place)
        self.runner.goes_on = self._latest.goes_on(str(moment.request))
        return moment

    def _inputs(self, asked: dict[str, object], clean: bool) -> tuple[object, ...]:
        """The captured inputs of a call. Raises CallError (MC0405) for arguments that the graph cannot take.

        clean: over finished chunks, which the model itself runs where it is of another form.
        """
        captured = self.runner.lowered.captured
        try:
            return flat_inputs(captured, asked, one_by_one=True)
        except CallError:
            plain = None if clean else self._idle.without(asked)
            if plain is None:
                raise
        return flat_inputs(captured, plain, one_by_one=True)

    def _check_model(self, moment: Moment, factor: float) -> None:
        """Looks at the model when a request begins, and at each call where code of others runs between calls.

        Raises ModelChanged (MC0612) before the step.
        """
        request, row = self._checked
        begins = moment.request != request or moment.row < row
        looks = begins or moment.visited
        changed = looks and self._state.changed()
        if looks or factor != self._factor:
            changed = self._scales.follow(factor) or changed
        if changed:
            self.runner.weights_changed()
            self._idle.forget()
        self._factor = factor
        if begins:
            self._sizes.forget()
            self._one_by_one.forget()
            for other in self._experts:
                if other is not self:
                    other.runner.leave(moment.request)
        self._checked = moment.request, moment.row

    def _run(self, call: dict[str, object], moment: Moment) -> object:
        as_dict = call.get("return_dict", self._return_dict) is True
        captured = self.runner.lowered.captured
        config = _configured(self.model)
        if config != self._config:
            changed = [f"{k}: {self._config.get(k)} -> {v}" for k, v in config.items() if self._config.get(k) != v]
            raise ConfigChanged(type(self.model).__name__, ", ".join(changed))
        plain, factor = self._scales.split(call)
        asked = {**plain, "return_dict": False} if self._return_dict is not _ABSENT else plain
        clean = all(chunk.state == "finished" for chunk in moment.chunks)
        try:
            given = self._inputs(asked, clean)
        except CallError:
            if not clean and not self.runner.begun(moment):
                raise
            return self._whole(call, moment, CLEAN_PASS if clean else OTHER_FORM)
        inputs = dict(zip(captured.inputs, given, strict=True))
        parts = self._one_by_one.parts(inputs)
        if not self._sizes.knows(inputs):
            self._scales.follow(1.0)
            self._sizes.check(inputs, parts)
        self._check_model(moment, factor)
        taken = parts if len(parts) > 1 else [self._sizes.taken(inputs)]
        flat = joined([self._flat(part, replace(moment, sample=i)) for i, part in enumerate(taken)])
        self.runner.join_masks(len(taken))
        result = pytree.tree_unflatten(list(flat), captured.out_spec)
        if captured.written:
            result, numbers = result
            give_back(call, captured.written, numbers)
        return self._wrapped(call, result) if as_dict else result

    def _wrapped(self, call: dict[str, object], result: object) -> object:
        """A result as the model itself returns it. In which class, the model says once, by running the call."""
        if self._output is None:
            self._output = type(self.model(**renewed(call)))
        if isinstance(result, self._output):
            return result
        return self._output(*result) if isinstance(result, tuple) else self._output(result)

    def _flat(self, inputs: dict[str, Value], moment: Moment) -> tuple[Value, ...]:
        """The flat outputs of a call. Raises CallError (MC0405) where the captured graph does not run at its sizes."""
        with told_of("the captured graph", self.model, inputs):
            journal = self._experts[0].journal
            if journal is not None:
                return journal.call(self.runner, inputs, moment)
            return self.runner.call(inputs, moment)


_ABSENT = object()


def _configured(model: nn.Module) -> dict[str, object]:
    """The model's configuration, without what saving it notes there: names that begin with `_` are diffusers' own."""
    return {name: value for name, value in dict(getattr(model, "config", {})).items() if not name.startswith("_")}
