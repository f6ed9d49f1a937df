"""Layers within the whole model: both may have rules, if no call of a guidance branch reuses both.

before: `layers whole = model { keep gap }`, `layers attn = blocks[*].attn { keep output }`
after:  in the branch whose output stands in, the model is run or not, all of it; in the other one, attention is reused

Where the output of the model stands in, nothing within it runs. So what its layers count, add up and look back at would
go on without them.
"""

from __future__ import annotations

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.ir import Granularity
from mccompile.language.effects import always_computes
from mccompile.language.errors import layers
from mccompile.language.intervals import Ranges
from mccompile.language.walk import cell_of, rule_in, whole_region


def may_nest(one: ir.Region, other: ir.Region) -> bool:
    """One is the whole model, and the other one layers of it that are kept and decide apart."""
    both = {isinstance(region.where, ir.WholeModel) for region in (one, other)}
    blocks = all(not isinstance(region.where, ir.Integration) for region in (one, other))
    kept = one.keep is not None and other.keep is not None
    return both == {True, False} and blocks and kept and one.name != other.name


def check_nested(
    regions: tuple[ir.Region, ...], phases: tuple[ir.Phase, ...], ranges: Ranges, errors: list[Diagnostic]
) -> None:
    """Reports guidance branches in which the model and layers of it are reused, and splits of frequencies by token."""
    whole = whole_region(regions)
    if whole is None:
        return
    branches = dict.fromkeys(of.branch for phase in phases for of in phase.branches or ())
    inner = [region for region in regions if region.keep is not None and region.name != whole.name]
    for branch in (None, *branches):
        outer = [r for phase in phases if not always_computes(r := rule_in(phase, branch, whole.name), ranges)]
        fine = next((rule for rule in outer if cell_of(rule) > Granularity.CHUNK), None)
        if fine is not None and (inner or whole.bands is not None):
            why = "layers of it decide apart" if whole.bands is None else "its frequencies are those of frames"
            errors.append(layers.ModelByToken(fine.at, why, whole.at))
            return
        for region in inner:
            also = [r for phase in phases if not always_computes(r := rule_in(phase, branch, region.name), ranges)]
            if outer and also:
                errors.append(layers.ReusedWithin(also[0].at, branch or "", outer[0].at))
                return

