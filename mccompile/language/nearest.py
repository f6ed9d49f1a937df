"""`reuse as nearest(residual, by = embedded)`: a token takes what the computed token that is most like it gets.

Nothing older is read, so these layers keep nothing. That asks for a rule that computes some tokens of each chunk: where
a rule selects none of them, the whole chunk is computed.
"""

from __future__ import annotations

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.arguments import as_call
from mccompile.language.effects import always_computes
from mccompile.language.errors import layers
from mccompile.language.expressions import Elaborator
from mccompile.language.intervals import Ranges
from mccompile.language.nodes import below
from mccompile.language.tensors import not_of_now
from mccompile.language.types import Poison, TypedTensor, described, place, written_at
from mccompile.language.walk import cell_of, rule_in

NEAREST = "nearest"


def asks_nearest(value: ast.WrittenExpr) -> bool:
    """Whether the nearest token has a part in what stands in."""
    return any(isinstance(one, ast.Call) and one.function.text == NEAREST for one in below(value))


def elaborate_nearest(
    value: ast.WrittenExpr, keep: ast.Name, where: ast.BlockRange | ast.ModelRange | None, within: Elaborator
) -> ir.SourceRef | None:
    """By which source the nearest token is found; None after an error."""
    found = as_call(value)
    why = ""
    if not isinstance(where, ast.BlockRange):
        why = "the whole model has no layers whose results tokens could take from each other"
    elif where.part is not None:
        why = f"`.{where.part.text}` is a part of blocks, and tokens take from each other what whole blocks give"
    elif found is None or found[0].function.text != NEAREST:
        why = "nothing is kept that could be added: `nearest` stands alone"
    if why:
        refuse_nearest(value, why, within)
        return None
    assert isinstance(value, ast.Call | ast.Pipe)
    call = within.options(value)
    if call is None:
        within.mention(value)
        return None
    of = call.values["of"]
    if not isinstance(of, ast.Ref) or of.name != keep.text:
        refuse_nearest(of, f"these layers say `keep {keep.text}`", within)
        return None
    by = within.infer(call.values["by"])
    if isinstance(by, Poison):
        return None
    if not isinstance(by, TypedTensor):
        within.report(layers.NoNearest(written_at(by), f"tokens are compared by a tensor, and this is {described(by)}"))
        return None
    why = not_of_now(by) or ("" if by.per_token else f"`{by.expr.name}` has no tokens")
    if why:
        within.report(layers.NoNearest(call.values["by"].span, why))
        return None
    return by.expr


def refuse_nearest(value: ast.WrittenExpr, why: str, within: Elaborator) -> None:
    """Reports that no nearest token can stand in here."""
    within.mention(value)
    within.report(layers.NoNearest(value.span, why))


def check_nearest(
    regions: tuple[ir.Region, ...], phases: tuple[ir.Phase, ...], ranges: Ranges, errors: list[Diagnostic]
) -> None:
    """Reports layers of one decision that do not all take from the same token, and rules that leave nothing to take."""
    told = set[Span | None]()
    for region in regions:
        if region.nearest is None:
            continue
        alike = [one for one in regions if one.keep is not None and one.name == region.name]
        other = next((one for one in alike if one.nearest != region.nearest), None)
        if other is not None:
            why = "layers that decide together take from the same token"
            errors.append(layers.NoNearest(place(region), why, other.at))
            return
        for phase in phases:
            for branch in (None, *(of.branch for of in phase.branches or ())):
                rule = rule_in(phase, branch, region.name)
                why = _nothing_to_take(rule, ranges)
                if why and rule.at not in told:
                    told.add(rule.at)
                    errors.append(layers.NothingNear(place(rule), why, region.at))


def _nothing_to_take(rule: ir.Rule, ranges: Ranges) -> str:
    """Why tokens that a rule reuses find no token to take from; "" where they do, or where nothing is reused."""
    if always_computes(rule, ranges):
        return ""
    if cell_of(rule) <= ir.Granularity.CHUNK:
        return "reuses all tokens of a chunk together"
    if isinstance(rule, ir.Reuse) and rule.stand_ins is not None:
        return "says itself what stands in, and of these layers nothing is kept"
    return ""
