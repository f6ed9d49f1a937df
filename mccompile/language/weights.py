"""Weights of stand-ins that are measured: every phase that reuses the layers has to measure them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language.errors import layers
from mccompile.language.walk import measured_leaves, own_stand_ins, rules_of, walk, walk_rule, weights_in


def check_weights(
    regions: tuple[ir.Region, ...], phases: tuple[ir.Phase, ...], signals: Mapping[str, ir.Signal],
    errors: list[Diagnostic],
) -> None:
    """Reports rules of layers that are weighed by a signal which their decision does not measure."""  # fmt: skip
    for phase in phases:
        for rule in rules_of(phase):
            for leaf in _leaves(own_stand_ins(rule), signals):
                why = _unmeasured(rule, leaf, signals)
                if why:
                    errors.append(layers.UnmeasuredWeight(leaf.at, leaf.name, phase.name, why))
    for region in regions:
        for leaf in _leaves(() if region.forecast is None else (region.forecast,), signals):
            for phase in phases:
                parts: tuple[ir.Phase | ir.BranchRule, ...] = (phase, *(phase.branches or ()))
                for of in parts:
                    why = _unmeasured(_rule_of(of, region), leaf, signals)
                    if why:
                        errors.append(layers.UnmeasuredWeight(leaf.at, leaf.name, phase.name, why))


def _leaves(forecasts: Iterable[ir.Forecast], signals: Mapping[str, ir.Signal]) -> tuple[ir.SignalRef, ...]:
    """The measured signals by which forecasts are weighed."""
    weights = (weight for forecast in forecasts for weight in weights_in(forecast))
    leaves = dict.fromkeys(leaf for weight in weights for leaf in measured_leaves(weight, signals))
    return tuple(leaf for leaf in leaves if isinstance(leaf, ir.SignalRef))


def _rule_of(of: ir.Phase | ir.BranchRule, region: ir.Region) -> ir.Rule:
    return next((one.rule for one in of.regions or () if one.region == region.name), of.rule)


def _unmeasured(rule: ir.Rule, of: ir.SignalRef, signals: Mapping[str, ir.Signal]) -> str:
    """Why a rule does not measure a signal; "" where it does, or where nothing is reused."""
    if isinstance(rule, ir.Compute):
        return ""
    if not isinstance(rule, ir.Reuse | ir.Top):
        return "its rule decides by the clock, and nothing is measured"
    own = (ir.Accumulate, ir.Kept, ir.Before, ir.Average, ir.Smooth)
    of_cell = any(isinstance(e, own) for e in walk(signals[of.name].expr, signals))
    if of_cell and not any(e == of for e in walk_rule(rule, signals)):
        return "it looks back at the cell of a rule, and this rule does not read it"
    return ""
