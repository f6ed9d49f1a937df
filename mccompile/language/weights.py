"""Weights of stand-ins that are measured: every phase that reuses the layers has to measure them."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language.errors import layers
from mccompile.language.walk import measured_leaves, walk, walk_rule


def check_weights(
    regions: tuple[ir.Region, ...], phases: tuple[ir.Phase, ...], signals: Mapping[str, ir.Signal],
    errors: list[Diagnostic],
) -> None:
    """Reports rules of layers that are weighed by a signal which their decision does not measure."""  # fmt: skip
    for region in regions:
        weights = () if region.forecast is None else region.forecast.weights
        leaves = (leaf for row in weights for weight in row for leaf in measured_leaves(weight, signals))
        for leaf in dict.fromkeys(leaves):
            assert isinstance(leaf, ir.SignalRef)
            for phase in phases:
                why = _unmeasured(_rule_of(phase, region), leaf, signals)
                if why:
                    errors.append(layers.UnmeasuredWeight(leaf.at, leaf.name, phase.name, why))


def _rule_of(phase: ir.Phase, region: ir.Region) -> ir.Rule:
    return next((one.rule for one in phase.regions or () if one.region == region.name), phase.rule)


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
