"""Rules that differ from block to block by `depth`: where the deciding block stands in the model.

before: `layers each blocks[*] { keep residual }`, `phase all { compute top 20% * (1.5 - depth) of tokens by SIGNAL }`
after:  the first block computes 30% of the tokens, the last one 10%, and all of them decide by one graph
"""

from __future__ import annotations

from collections.abc import Iterator

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.language.errors import layers
from mccompile.language.walk import of_bands, own_stand_ins, rule_expressions, rule_in, walk, weights_in


def reads_depth(policy: ir.PolicyIR) -> bool:
    """Whether some rule of a policy differs from block to block."""
    numbers = (number for region in policy.regions for number in _numbers(region, policy.phases))
    return any(isinstance(e, ir.Depth) for number in numbers for e in walk(number, {}))


def check_depth(regions: tuple[ir.Region, ...], phases: tuple[ir.Phase, ...], errors: list[Diagnostic]) -> None:
    """Reports the first `depth` that layers read which decide together."""
    for region in regions:
        if region.keep is None or region.each:
            continue
        # Signals are not entered: `depth` in one of them has been reported.
        read = (e for number in _numbers(region, phases) for e in walk(number, {}))
        found = next((e for e in read if isinstance(e, ir.Depth)), None)
        if found is not None:
            errors.append(layers.NoDepth(found.at, "many blocks have one decision here", region.at))


def _numbers(region: ir.Region, phases: tuple[ir.Phase, ...]) -> Iterator[ir.Expr]:
    """All that is evaluated for a region: what stands in for it, and its rules in all branches."""
    said = () if region.bands is None else of_bands(region.bands)
    for forecast in said if region.forecast is None else (region.forecast, *said):
        yield from weights_in(forecast)
    for phase in phases:
        for branch in (None, *(of.branch for of in phase.branches or ())):
            rule = rule_in(phase, branch, region.name)
            yield from rule_expressions(rule)
            for forecast in own_stand_ins(rule):
                yield from weights_in(forecast)
