"""compile(): a model or a pipeline and a policy in, a stand-in for the transformer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from mccompile.backend.inductor import Progress, inductor
from mccompile.backend.record import Recorder
from mccompile.capture import capture_batched, flat_inputs
from mccompile.capture.errors import CaptureError
from mccompile.capture.own import note_model
from mccompile.capture.shallow import capture_hollow, is_hollow
from mccompile.capture.types import CapturedModel
from mccompile.ir import PolicyIR
from mccompile.lowering.errors import DeniedRefusals
from mccompile.lowering.lower import ONLY_COMPUTES, lower
from mccompile.lowering.spec import verifying
from mccompile.lowering.types import LoweredModel
from mccompile.pipelines.alike import over
from mccompile.pipelines.budgets import keeping_for
from mccompile.pipelines.finding import clock_for, driver_for
from mccompile.pipelines.probe import ExampleCall
from mccompile.policy.bind import BoundPolicy, bind, parameters_of
from mccompile.policy.budget import measures
from mccompile.policy.choosing import load_chosen
from mccompile.policy.facts import keeps_increment
from mccompile.runtime.adapters import open_scales, without_scale
from mccompile.runtime.blocks import Backend, eager
from mccompile.runtime.budget import Keeping
from mccompile.runtime.clock import Clock
from mccompile.runtime.compiled import LOG, CompiledModel
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.increments import check_integrates
from mccompile.runtime.modes import in_eval
from mccompile.runtime.prefixes import check_chunks, provable
from mccompile.runtime.remembers import check_remembers_nothing, runs_at
from mccompile.runtime.shared import Value
from mccompile.runtime.stand_in import SLOTS, ExpertSlot, transformer_of, unwrapped
from mccompile.runtime.state import check_untreated, uncompiled

AnyPolicy: TypeAlias = PolicyIR | str | Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A captured model, and the attention masks of it that were proved to be prefixes of the keys."""

    model: CapturedModel
    prefixes: frozenset[str]
    calls: tuple[Mapping[str, Value], ...]  # the two example calls, as the captured graph takes them
    call: Mapping[str, object]  # arguments of the pipeline's call, with the size that budgets are met at
    others: Mapping[ExpertSlot, Prepared] = field(default_factory=dict)  # captures of the pipeline's further experts

    def of(self, slot: ExpertSlot | None) -> Prepared:
        """The capture of the transformer in a place."""
        return self if slot is None or slot not in self.others else replace(self.others[slot], call=self.call)


def compile(
    model: object,
    policy: AnyPolicy | Mapping[ExpertSlot, AnyPolicy],
    *,
    backend: Backend | Literal["inductor", "eager"] = "inductor",
    call: Mapping[str, object] | None = None,
    probe: ExampleCall | None = None,
    second: ExampleCall | None = None,
    clock: Clock | None = None,
    fold: bool = True,
    deny_refusals: bool = False,
    batches: bool = False,
    verify: bool = False,
    captured: Prepared | None = None,
    progress: Progress | None = None,
    **parameters: float | str,
) -> CompiledModel:
    """Compiles `model` under `policy`.

    model: a diffusers pipeline, or a transformer (torch.nn.Module). The result replaces the pipeline's `transformer`
    until `result.undo()`; the transformer is in eval mode until then. A transformer needs two example calls: probe and
    second, its keyword arguments at two sizes.
    policy: the IR, the name of a shipped policy, a path, or the text of a policy. Experts that take turns (Wan 2.2) are
    all compiled, under one policy, or each under its own: {"transformer": ..., "transformer_2": ...}.
    backend: "inductor" compiles everything at once, and "eager" compiles nothing. A callable gets a graph and its role,
    and returns what runs in the graph's place.
    batches: compile also for several samples (prompts) per call. This takes about twice as long. ("eager" runs any
    number of samples.)
    verify: hold every part of the model against its specification after every pass (lowering/spec.py).
    parameters: values for the policy's parameters, and for each of its choices the name of an alternative.
    call: arguments of the pipeline's call that change how it calls the transformer (causal_block_size, ...), and its
    size (height, width, num_frames). A policy's budget is met at this size. The default is the pipeline's own call.
    clock: says which step a call is. The default follows the pipeline's own schedule.
    progress: called after each compiled graph with its role, the number of graphs that are done, the number of all
    graphs, and the seconds.
    captured: the result of `prepare` for the same model, to compile it under several policies.

    Raises PolicyError, CaptureError, LoweringError, PipelineError or NoIncrement. Each names its place, its cause and a
    remedy.
    """
    pipe = None if isinstance(model, nn.Module) else model
    slots = slots_in(model)
    chosen = _chosen(policy, slots, parameters)
    for ir, numbers in chosen:
        bind(ir, numbers)
        check_steps(model, ir, clock)
    if captured is None:
        fixed = driver_for(model).fixed_by(chosen[0][0]) if probe is None or second is None else {}
        captured = prepare(model, call={**fixed, **(call or {})}, probe=probe, second=second)
    else:
        for slot in slots:
            check_untreated(own_transformer(model, slot))  # since the capture, it may have got hooks
    captured = complete(model, captured)
    if call is not None:
        captured = replace(captured, call={**captured.call, **call})
    parts = [
        _lowered(model, slot, ir, captured, numbers, fold, verify)
        for slot, (ir, numbers) in zip(slots, chosen, strict=True)
    ]
    refusals = [refusal for part in parts for refusal in part.lowered.refusals]
    if deny_refusals and refusals:
        raise DeniedRefusals(tuple(f"{r.site}: {r.reason}" for r in refusals))
    for refusal in refusals:
        if refusal.reason == ONLY_COMPUTES:
            LOG.warning("%s %s", refusal.site, refusal.reason)
    made = _backend(backend, parts, progress, batches)
    compiled = [_compiled(model, part, made, fold, clock) for part in parts]
    for other in compiled[1:]:
        compiled[0].join(other)
    if pipe is not None:
        compiled[0].install(pipe, clock_for(pipe) if clock is None else clock)
    return compiled[0]


def check_steps(model: object, policy: PolicyIR, clock: Clock | None = None) -> None:
    """Raises NoIncrement (MC0608) for a policy that takes over the steps of a pipeline where it cannot: before capture.
    """  # fmt: skip
    if not keeps_increment(policy):
        return
    if isinstance(model, nn.Module):
        raise NoIncrement(policy, type(model).__name__, "it is a transformer alone")
    check_integrates(model, policy, clock_for(model) if clock is None else clock)


@dataclass(frozen=True, slots=True)
class _Part:
    """One transformer of a pipeline under its policy, and the example calls of its capture."""

    slot: ExpertSlot | None
    lowered: LoweredModel
    bound: BoundPolicy
    keeping: Keeping
    calls: tuple[Mapping[str, Value], ...]


def _chosen(
    policy: AnyPolicy | Mapping[ExpertSlot, AnyPolicy], slots: Sequence[ExpertSlot | None],
    values: Mapping[str, float | str],
) -> list[tuple[PolicyIR, Mapping[str, float]]]:
    """For each transformer its policy with the choices settled, and the values of the parameters that are its own."""
    if isinstance(policy, Mapping) and set(policy) != set(slots):
        wanted = ", ".join(slot or SLOTS[0] for slot in slots)
        raise ValueError(f"policies are given for {', '.join(policy)}, and the transformers are {wanted}")
    each = [policy[slot] if isinstance(policy, Mapping) else policy for slot in slots]  # type: ignore[index]
    found = [_settled(one, values) for one in each]
    policies = [ir for ir, _ in found]
    choices = {name for name in values if any(name not in numbers for _, numbers in found)}
    rest = [{n: v for n, v in numbers.items() if n not in choices} for _, numbers in found]
    return [(ir, parameters_of(ir, own, policies)) for ir, own in zip(policies, rest, strict=True)]


def _settled(policy: AnyPolicy, values: Mapping[str, float | str]) -> tuple[PolicyIR, Mapping[str, float]]:
    """The policy with its choices settled, and the values that are left; a PolicyIR has no choices any more."""
    if isinstance(policy, PolicyIR):
        return policy, values  # type: ignore[return-value]  # `bind` refuses a word
    found = load_chosen(policy, values)
    return found.policy, found.numbers


def _lowered(
    model: object, slot: ExpertSlot | None, ir: PolicyIR, captured: Prepared, parameters: Mapping[str, float],
    fold: bool, verify: bool,
) -> _Part:  # fmt: skip
    own = captured.of(slot)
    keeping = keeping_of(model, ir, own, parameters)
    if ir.cache.budget is not None:
        ir = replace(ir, cache=keeping.cache)
    lowered = lower(own.model, ir, own.prefixes, fold, verifying if verify else None)
    bound = bind(ir, parameters)
    check_chunks(lowered, bound, own.calls)
    return _Part(slot, lowered, bound, keeping, own.calls)


def _compiled(model: object, part: _Part, backend: Backend, fold: bool, clock: Clock | None) -> CompiledModel:
    compiled = CompiledModel(own_transformer(model, part.slot), part.lowered, part.bound, backend, fold, part.slot)
    compiled.clock, compiled.keeping = clock, part.keeping
    return compiled


def slots_in(model: object) -> tuple[ExpertSlot | None, ...]:
    """The places of the transformers that are compiled: of each expert of a pipeline, else None for the only one.

    Raises NotAPipeline (MC0701), and SecondTransformer (MC0713) where another one would run without the policy.
    """
    if isinstance(model, nn.Module):
        return (None,)
    found = driver_for(model).experts(model)
    return found if len(found) > 1 else (None,)


def prepare(
    model: object,
    *,
    call: Mapping[str, object] | None = None,
    probe: ExampleCall | None = None,
    second: ExampleCall | None = None,
) -> Prepared:
    """Captures a pipeline's transformers, or a transformer with two example calls. Arguments as in `compile`."""
    slots = slots_in(model)
    first = own_transformer(model, slots[0])
    if probe is None or second is None:
        made, given = _recorded(model, first, call or {})
    else:
        made, given = _prepared(first, probe, second, call)
    others = {s: _alike(made, first, own_transformer(model, s), given) for s in slots[1:] if s is not None}
    return replace(made, others=others)


ExampleCalls: TypeAlias = tuple[Mapping[str, object], Mapping[str, object]]


def _recorded(model: object, transformer: nn.Module, call: Mapping[str, object]) -> tuple[Prepared, ExampleCalls]:
    """The capture of a pipeline's transformer from calls at small sizes, or at larger ones if it runs at none of those.

    A pipeline may run its model at sizes of its own, smaller than that of the video (HeliosPyramidPipeline).
    """
    probe, second = driver_for(model).record(model, call)
    try:
        return _prepared(transformer, probe, second, call)
    except CaptureError:
        if is_hollow(transformer) or all(runs_at(transformer, given) for given in (probe, second)):
            raise
    probe, second = driver_for(model).record(model, call, larger=True)
    return _prepared(transformer, probe, second, call)


def _prepared(
    transformer: nn.Module, probe: ExampleCall, second: ExampleCall, call: Mapping[str, object] | None
) -> tuple[Prepared, ExampleCalls]:
    """A transformer's capture, and the two calls that it is captured with."""
    check_untreated(transformer)
    bare = is_hollow(transformer)
    with in_eval(transformer), uncompiled(transformer):
        if not bare:
            check_remembers_nothing(transformer, probe)
        calls = (without_scale(transformer, call) for call in (probe, second))
        with open_scales(transformer):
            captured, given = (capture_hollow if bare else capture_batched)(transformer, *calls)
    return _of(captured, transformer, given, call), given


def _of(
    captured: CapturedModel, transformer: nn.Module, given: ExampleCalls, call: Mapping[str, object] | None
) -> Prepared:
    note_model(captured.module, transformer)
    calls = tuple(dict(zip(captured.inputs, flat_inputs(captured, c), strict=True)) for c in given)
    return Prepared(captured, provable(captured, _masks(captured), calls), calls, dict(call or {}))


def _alike(first: Prepared, model: nn.Module, other: nn.Module, given: ExampleCalls) -> Prepared:
    """The capture of a further expert: that of the first one over its weights where they are built alike."""
    check_untreated(other)
    found = None
    with in_eval(model), in_eval(other), uncompiled(model), uncompiled(other), open_scales(model), open_scales(other):
        if not is_hollow(other):
            found = over(first.model, model, other, given)
    if found is None:
        return _prepared(other, dict(given[0]), dict(given[1]), first.call)[0]
    return _of(found, other, given, first.call)


def complete(model: object, captured: Prepared) -> Prepared:
    """A capture of all transformers of a pipeline; those are added that it lacks, since its pipeline had only one."""
    missing = [slot for slot in slots_in(model)[1:] if slot is not None and slot not in captured.others]
    if not missing:
        return captured
    probe, second = driver_for(model).record(model, captured.call)
    first, given = own_transformer(model), (probe, second)
    made = {slot: _alike(captured, first, own_transformer(model, slot), given) for slot in missing}
    return replace(captured, others={**captured.others, **made})


def own_transformer(model: object, slot: ExpertSlot | None = None) -> nn.Module:
    """The transformer of a pipeline, or one that was given alone, without what was put in its place or around it.

    slot: its place; None: the first.

    Raises NotAPipeline (MC0701) for what is neither.
    """
    if isinstance(model, nn.Module):
        return unwrapped(model)
    driver_for(model)
    found = transformer_of(model, slot)
    assert found is not None
    return unwrapped(found)


def keeping_of(model: object, policy: PolicyIR, captured: Prepared, parameters: Mapping[str, float]) -> Keeping:
    """How `policy` keeps what it keeps on a captured pipeline or transformer. Raises BudgetUnmet (MC0504)."""
    if policy.cache.budget is None:
        return Keeping(measures(policy.cache, accelerator=False)[0], None)
    pipe = None if isinstance(model, nn.Module) else model
    return keeping_for(pipe, policy, captured.model, captured.prefixes, captured.calls, captured.call, parameters)


def _backend(wanted: Backend | str, parts: Sequence[_Part], progress: Progress | None, batches: bool) -> Backend:
    """The backend of that name; "inductor" records what the example calls ask for and compiles it, equal graphs once.

    Blocks that are the model's own code are not compiled: a refusal of `lowered` says so.
    """
    if callable(wanted):
        return wanted
    if wanted not in ("eager", "inductor"):
        raise ValueError(f"backend must be 'inductor', 'eager' or a callable, not {wanted!r}")
    graphs = [part for part in parts if not part.lowered.captured.opaque]
    if wanted == "eager" or not graphs:
        return eager
    recorder = Recorder()
    for part in graphs:
        record_roles(recorder, part.lowered, part.bound, part.calls, several=batches)
    return inductor(recorder, graphs[0].lowered, progress=progress)


def _masks(captured: CapturedModel) -> tuple[str, ...]:
    """Shared values that mask an attention and depend on nothing but sizes."""
    constant = {p.name for p in captured.shared if not p.depends}
    masks = (s.mask for k in captured.kinds if k.partial is not None for s in k.partial.attentions)
    return tuple(dict.fromkeys(m.name for m in masks if m is not None and m.name in constant))
