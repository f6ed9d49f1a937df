"""What is true of a policy on every model and at every step: is it exact, whole steps only, the model itself?"""

from __future__ import annotations

import functools

from mccompile import ir
from mccompile.language.walk import (
    all_rules,
    cell_of,
    forecasts_of,
    walk,
    walk_rule,
    weights_in,
    whole_region,
)

LOSSLESS: frozenset[ir.KeptDtype] = frozenset({"model", "float32"})


def computes_every_step(policy: ir.PolicyIR) -> bool:
    """No phase reuses anything."""
    return all(isinstance(rule, ir.Compute) for rule in all_rules(policy))


def computes_always(policy: ir.PolicyIR) -> bool:
    """The policy is the model itself: every chunk of every call is computed."""
    chunks = policy.chunks
    whole = chunks.pending == "compute" and chunks.finished == "compute" and policy.cache.window is None
    return whole and computes_every_step(policy)


def is_exact(policy: ir.PolicyIR) -> bool:
    """The policy's own words keep the model's output: everything is computed while it can still change.

    A dtype that a budget has not decided yet may be any, so it is not exact: ask about the policy that runs.
    """
    lossless = LOSSLESS | ({"auto"} if policy.cache.budget is None else set())
    kept = {policy.cache.dtype, policy.cache.residual}
    whole = policy.chunks.finished != "keep" and policy.cache.window is None
    return kept <= lossless and whole and computes_every_step(policy)


def selects_within_chunks(policy: ir.PolicyIR) -> bool:
    """Some rule computes a part of a chunk's tokens and reuses the others."""
    return any(cell_of(rule) > ir.Granularity.CHUNK for rule in all_rules(policy))


def keeps_increment(policy: ir.PolicyIR) -> bool:
    """The policy's region is the integration step."""
    return any(region.keep == "increment" for region in policy.regions)


def model_region(policy: ir.PolicyIR) -> ir.Region | None:
    """The region that keeps the output of the whole model; None where results of blocks are kept."""
    return whole_region(policy.regions)


@functools.lru_cache(maxsize=256)  # every decision asks for it
def account_names(policy: ir.PolicyIR) -> tuple[str, ...]:
    """The accounts of every cell, in order: `account`, then those with a name of their own, as rules read them."""
    signals = {s.name: s for s in policy.signals}
    found = (e for rule in all_rules(policy) for e in walk_rule(rule, signals))
    return tuple(dict.fromkeys(("account", *(e.into for e in found if isinstance(e, ir.Accumulate)))))


def steps_read(policy: ir.PolicyIR) -> int:
    """At how many of the last steps that computed a token its forecast looks; 0 where there is no forecast."""
    signals = {s.name: s for s in policy.signals}
    forecasts = forecasts_of(policy)
    rows = [weights for forecast in forecasts for weights in (forecast.weights, *forecast.weights)]
    read = (e.n for f in forecasts for w in weights_in(f) for e in walk(w, signals) if isinstance(e, ir.Kept))
    return max((*map(len, rows), *read), default=0)
