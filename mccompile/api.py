"""compile(): a model or a pipeline and a policy in, a stand-in for the transformer out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from mccompile.backend.inductor import Progress, inductor
from mccompile.backend.record import Recorder
from mccompile.capture import capture_batched, flat_inputs
from mccompile.capture.types import CapturedModel
from mccompile.ir import PolicyIR
from mccompile.lowering.errors import DeniedRefusals
from mccompile.lowering.lower import ONLY_COMPUTES, lower
from mccompile.lowering.spec import verifying
from mccompile.lowering.types import LoweredModel
from mccompile.pipelines.budgets import keeping_for
from mccompile.pipelines.finding import clock_for, driver_for
from mccompile.pipelines.probe import SIZES, ExampleCall
from mccompile.policy.bind import BoundPolicy, bind
from mccompile.policy.budget import measures
from mccompile.policy.choosing import load_chosen
from mccompile.policy.facts import keeps_increment
from mccompile.runtime.blocks import Backend, eager
from mccompile.runtime.budget import Keeping
from mccompile.runtime.clock import Clock
from mccompile.runtime.compiled import LOG, CompiledModel
from mccompile.runtime.errors import NoIncrement
from mccompile.runtime.exercise import record_roles
from mccompile.runtime.prefixes import provable
from mccompile.runtime.shared import Value
from mccompile.runtime.stand_in import transformer_of, unwrapped
from mccompile.runtime.state import check_untreated, uncompiled


@dataclass(frozen=True, slots=True)
class Prepared:
    """A captured model, and the attention masks of it that were proved to be prefixes of the keys."""

    model: CapturedModel
    prefixes: frozenset[str]
    calls: tuple[Mapping[str, Value], ...]  # the two example calls, as the captured graph takes them
    call: Mapping[str, object]  # arguments of the pipeline's call, with the size that budgets are met at


def compile(
    model: object,
    policy: PolicyIR | str | Path,
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
    until `result.undo()`. A transformer needs two example calls: probe and second, its keyword arguments at two sizes.
    policy: the IR, the name of a shipped policy, a path, or the text of a policy.
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
    ir, numbers = _chosen(policy, parameters)
    bound = bind(ir, numbers)
    pipe = None if isinstance(model, nn.Module) else model
    if pipe is None and keeps_increment(ir):
        raise NoIncrement(ir, type(model).__name__, "it is a transformer alone")
    if pipe is not None:
        driver_for(pipe).admit(pipe)
    if captured is None:
        fixed = driver_for(model).fixed_by(ir) if probe is None or second is None else {}
        captured = prepare(model, call={**fixed, **(call or {})}, probe=probe, second=second)
    transformer = own_transformer(model)
    if call is not None:
        captured = replace(captured, call={**captured.call, **call})
    keeping = keeping_of(model, ir, captured, numbers)
    if ir.cache.budget is not None:
        ir = replace(ir, cache=keeping.cache)
        bound = bind(ir, numbers)
    lowered = lower(captured.model, ir, captured.prefixes, fold, verifying if verify else None)
    if deny_refusals and lowered.refusals:
        raise DeniedRefusals(tuple(f"{r.site}: {r.reason}" for r in lowered.refusals))
    for refusal in lowered.refusals:
        if refusal.reason == ONLY_COMPUTES:
            LOG.warning("%s %s", refusal.site, refusal.reason)
    chosen = _backend(backend, lowered, bound, captured.calls, progress, batches)
    compiled = CompiledModel(transformer, lowered, bound, chosen, fold)
    compiled.clock, compiled.keeping = clock, keeping
    if pipe is not None:
        compiled.install(pipe, clock_for(pipe) if clock is None else clock)
    return compiled


def _chosen(
    policy: PolicyIR | str | Path, values: Mapping[str, float | str]
) -> tuple[PolicyIR, Mapping[str, float]]:
    """The policy with its choices settled, and the values of its parameters; a PolicyIR has no choices any more."""
    if isinstance(policy, PolicyIR):
        return policy, values  # type: ignore[return-value]  # `bind` refuses a word
    found = load_chosen(policy, values)
    return found.policy, found.numbers


def prepare(
    model: object,
    *,
    call: Mapping[str, object] | None = None,
    probe: ExampleCall | None = None,
    second: ExampleCall | None = None,
) -> Prepared:
    """Captures a pipeline's transformer, or a transformer with two example calls. Arguments as in `compile`."""
    transformer = own_transformer(model)
    check_untreated(transformer)
    if probe is None or second is None:
        arguments = {k: v for k, v in (call or {}).items() if k not in SIZES}
        probe, second = driver_for(model).record(model, arguments)
    transformer.eval()
    with uncompiled(transformer):
        captured, given = capture_batched(transformer, probe, second)
    calls = tuple(dict(zip(captured.inputs, flat_inputs(captured, c), strict=True)) for c in given)
    return Prepared(captured, provable(captured, _masks(captured), calls), calls, dict(call or {}))


def own_transformer(model: object) -> nn.Module:
    """The transformer of a pipeline, or one that was given alone, without what was put in its place or around it.

    Raises NotAPipeline (MC0701) for what is neither.
    """
    if isinstance(model, nn.Module):
        return unwrapped(model)
    driver_for(model)
    found = transformer_of(model)
    assert found is not None
    return unwrapped(found)


def keeping_of(model: object, policy: PolicyIR, captured: Prepared, parameters: Mapping[str, float]) -> Keeping:
    """How `policy` keeps what it keeps on a captured pipeline or transformer. Raises BudgetUnmet (MC0504)."""
    if policy.cache.budget is None:
        return Keeping(measures(policy.cache, accelerator=False)[0], None)
    pipe = None if isinstance(model, nn.Module) else model
    return keeping_for(pipe, policy, captured.model, captured.prefixes, captured.calls, captured.call, parameters)


def _backend(
    wanted: Backend | str,
    lowered: LoweredModel,
    bound: BoundPolicy,
    calls: tuple[Mapping[str, Value], ...],
    progress: Progress | None,
    batches: bool,
) -> Backend:
    """The backend of that name; "inductor" records what the two example calls ask for and compiles it.

    Blocks that are the model's own code are not compiled: a refusal of `lowered` says so.
    """
    if callable(wanted):
        return wanted
    if wanted not in ("eager", "inductor"):
        raise ValueError(f"backend must be 'inductor', 'eager' or a callable, not {wanted!r}")
    if wanted == "eager" or lowered.captured.opaque:
        return eager
    recorder = Recorder()
    record_roles(recorder, lowered, bound, calls, several=batches)
    return inductor(recorder, lowered, progress=progress)


def _masks(captured: CapturedModel) -> tuple[str, ...]:
    """Shared values that mask an attention and depend on nothing but sizes."""
    constant = {p.name for p in captured.shared if not p.depends}
    masks = (s.mask for k in captured.kinds if k.partial is not None for s in k.partial.attentions)
    return tuple(dict.fromkeys(m.name for m in masks if m is not None and m.name in constant))
