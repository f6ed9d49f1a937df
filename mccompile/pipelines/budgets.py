"""Meets a policy's byte budget at compile time, for the size that the policy is compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mccompile import ir
from mccompile.capture import flat_inputs
from mccompile.capture.types import CapturedModel
from mccompile.lowering.errors import BudgetUnmet
from mccompile.lowering.lower import lower
from mccompile.pipelines.errors import BudgetUncounted, PipelineFailed
from mccompile.pipelines.finding import driver_for
from mccompile.policy.bind import bind
from mccompile.policy.budget import first_within, in_words, measures
from mccompile.runtime.budget import Keeping, Predictor
from mccompile.runtime.shared import Value


def keeping_for(
    pipe: object | None,
    policy: ir.PolicyIR,
    captured: CapturedModel,
    prefixes: frozenset[str],
    calls: Sequence[Mapping[str, Value]],
    arguments: Mapping[str, object],
    parameters: Mapping[str, float],
) -> Keeping:
    """How `policy` keeps what it keeps on this model, and how many bytes that is at the declared size.

    pipe: None where the model is a transformer alone. calls: the two example calls, as `captured` takes them.
    arguments: of the pipeline's call, with its size; without one, the size is the pipeline's own. A transformer alone,
    and a pipeline that runs windows of chunks, is taken at the second example call.
    Raises BudgetUnmet (MC0504), BudgetUncounted (MC0720), ProbeFailed, and PipelineFailed (MC0706) for a size that the
    model cannot run at.
    """  # fmt: skip
    if captured.opaque:
        raise BudgetUncounted(policy.name, captured.model_class)
    plain = replace(policy.cache, dtype="model", residual="model", device="model", budget=None)
    as_computed = replace(policy, cache=plain)
    predictor = Predictor(lower(captured, as_computed, prefixes), bind(as_computed, parameters))
    inputs, branches = calls[1], 1
    example = inputs
    if pipe is not None:
        declared = driver_for(pipe).declared(pipe, arguments)
        branches = declared.branches
        if declared.call is not None:
            inputs = dict(zip(captured.inputs, flat_inputs(captured, declared.call), strict=True))
            example = calls[0]
    try:
        store = predictor.store(inputs, predictor.moment(example, inputs))
    except RuntimeError as error:  # a shape that some operator of the model refuses
        raise PipelineFailed(type(pipe).__name__ if pipe is not None else captured.model_class, error) from error
    options = measures(policy.cache, predictor.accelerator)
    kept = {option: predictor.count(store, option).of_branches(branches) for option in options}
    chosen = first_within(options, lambda option: kept[option].on_device(option))
    if chosen is None:
        best = min(options, key=lambda option: kept[option].on_device(option))
        raise BudgetUnmet(policy.name, policy.cache, kept[best].on_device(best), in_words(best))
    return Keeping(chosen, kept[chosen])
