"""Turns `layers` into regions. It checks for empty and overlapping ranges, and for results that are kept in vain."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, TypeAlias, cast

from mccompile import ir
from mccompile.diagnostics.diagnostic import Diagnostic
from mccompile.diagnostics.source import Span
from mccompile.language import ast
from mccompile.language.bands import elaborate_bands
from mccompile.language.builtins import BRANCHES
from mccompile.language.depth import Where, block_bounds, blocks_of, part_of, shared_blocks
from mccompile.language.errors import layers, names
from mccompile.language.expressions import Elaborator
from mccompile.language.forecast import elaborate_forecast
from mccompile.language.nearest import asks_nearest, elaborate_nearest
from mccompile.language.nested import may_nest
from mccompile.language.spell import whose
from mccompile.language.types import place
from mccompile.language.walk import walk_rule

_DEEP = 1_000_000
"""A depth beyond every model's: ranges that meet in so deep a stack meet in every deep enough one."""

KEEP_BLOCKS = ("residual", "output")
KEEP_MODEL = (*KEEP_BLOCKS, "gap")
KEEP_INTEGRATION = ("increment",)
_ALL: Mapping[type, str] = {ir.Integration: "the integration", ir.WholeModel: "the model"}


def elaborate_regions(declared: list[ast.LayersDecl], within: Elaborator) -> tuple[ir.Region, ...]:
    """Block regions in order of depth, the integration last; reports what is wrong with them."""
    errors = within.errors
    made: list[ir.Region] = []
    claimed: dict[ir.SublayerName | None, list[_Claim]] = {part: [] for part in (None, *ir.SUBLAYERS)}
    whole: ir.Region | None = None
    for item in declared:
        choices: tuple[str, ...] = KEEP_INTEGRATION if item.where is None else KEEP_BLOCKS
        if isinstance(item.where, ast.ModelRange):
            choices = KEEP_MODEL
        if item.keep is not None and item.keep.text not in choices:
            errors.append(names.InvalidWord(item.keep.span, "keep", item.keep.text, choices))
        region = _region(item, within)
        made.append(region)
        named = item.where.part if isinstance(item.where, ast.BlockRange) else None
        if named is not None and named.text not in ir.SUBLAYERS:
            errors.append(layers.UnknownSublayer(named.span, named.text))
            continue
        blocks = blocks_of(region.where)
        first, last = (0, _DEEP) if blocks is None else block_bounds(blocks, _DEEP)
        if blocks is not None and first > last:
            errors.append(layers.EmptyLayers(blocks.at))
            continue
        part = part_of(region.where)
        others = claimed.values() if part is None else (claimed[None], claimed[part])
        met = (_met(each, first, last) for each in others)
        found = [*made[:-1]] if blocks is None else [one for one in (whole, *met) if one is not None]
        other = next((one for one in found if not may_nest(region, one)), None)
        if other is not None:
            claim = _claim(region.where, other.where)
            errors.append(layers.OverlappingLayers(region.where.at, claim, place(other.where)))
        elif blocks is None:
            whole = region
        else:
            insort(claimed[part], (first, last, region), key=itemgetter(0))
    return tuple(sorted(made, key=_depth))


def check_names(
    declared: list[ast.LayersDecl], phases: list[ast.PhaseDecl], errors: list[Diagnostic]
) -> frozenset[str | None]:
    """Rules of regions are those of kept layers, one in a phase; and a name of layers has a rule somewhere.

    Returns the names of regions of which it is not known what rules they have: all of them beside a misspelt name.
    """
    known = tuple(dict.fromkeys(item.name.text for item in declared if item.name and item.keep is not None))
    for phase in phases:
        first: dict[str, ast.NamedRule] = {}
        for rule in phase.regions:
            region, branch = rule.region, rule.branch
            if branch is not None and branch.text not in BRANCHES:
                errors.append(names.InvalidWord(branch.span, "the branch of a rule", branch.text, BRANCHES))
            elif region is not None and region.text not in known:
                errors.append(layers.UnknownRegion(region.span, region.text, known))
            else:
                _check_twice(rule, first, errors)
    ruled = {rule.region.text for phase in phases for rule in phase.regions if rule.region is not None}
    named = [(item, item.name) for item in declared if item.name is not None]
    misspelt = ruled - {name.text for _, name in named}
    told: set[str | None] = {None, *known} if misspelt else set()
    for item, name in named:
        if name.text in ruled or (item.keep is not None and name.text in told):
            continue
        why = "these layers are always computed" if item.keep is None else "no phase has a rule for it"
        errors.append(layers.IdleRegionName(name.span, name.text, why))
        told.add(name.text)
    return frozenset(told)


def _check_twice(rule: ast.NamedRule, first: dict[str, ast.NamedRule], errors: list[Diagnostic]) -> None:
    """A phase has one rule for each region of a branch. first: the rules before it, by what they are called."""
    name = whose(rule)
    before = first.setdefault(name, rule)
    if before is rule and rule.branch is not None:  # a rule of all regions of a branch, and one of some of them
        alone = [one for one in first.values() if one.branch == rule.branch and (one.region is None or not rule.region)]
        before = next(iter(alone), rule)
    if before is not rule:
        errors.append(names.DefinedTwice(rule.span, "rule of", name, before.span))


def check_gaps(regions: tuple[ir.Region, ...], reusing: list[Reusing], errors: list[Diagnostic]) -> None:
    """The gap to the other branch stands in for one branch: the other one is computed."""
    for region in regions:
        both = [rule for rule in reusing if rule.branch is None and rule.region in (None, region.name)]
        if region.keep == "gap" and both:
            errors.append(layers.GapOfBoth(both[0].at))


_Claim: TypeAlias = tuple[int, int, ir.Region]
"""Blocks of a region, first and last. Claims of one part lie in order of depth, and no block is in two."""


def _met(claimed: list[_Claim], first: int, last: int) -> ir.Region | None:
    """The first region that has one of the blocks first..last."""
    at = max(0, bisect_right(claimed, first, key=itemgetter(0)) - 1)
    return next((region for begin, end, region in claimed[at : at + 2] if begin <= last and first <= end), None)


@dataclass(frozen=True, slots=True)
class Reusing:
    """A rule that reuses something. branch, region: whose rule it is; None where it is that of all."""

    branch: str | None
    region: str | None
    at: Span


def check_use(
    regions: tuple[ir.Region, ...], rules: list[ir.Rule], reusing: list[Reusing], told: frozenset[str | None],
    signals: Mapping[str, ir.Signal], errors: list[Diagnostic],
) -> None:
    """What is reused must be kept, what is kept must be reused, and a probe needs blocks to look at.

    rules: those without an error. reusing: the rules that reuse something, or would without an error in them. told:
    names of regions whose rules have an error already.
    """  # fmt: skip
    kept = [region for region in regions if region.keep is not None]
    if reusing and not kept:
        errors.append(layers.NothingKept(reusing[0].at))
    reused = {rule.region for rule in reusing}
    idle = [r for r in kept if None not in reused and r.name not in reused and r.name not in told]
    if rules and idle:
        errors.extend(layers.NeverReused(region.at) for region in (idle if reusing else kept[:1]))
    looked_at = bool(regions) and regions[0].keep is None and isinstance(regions[0].where, ir.Blocks)
    read = (node for rule in rules for node in walk_rule(rule, signals))
    sources = (node for node in read if isinstance(node, ir.SourceRef))
    probe = next((source for source in sources if source.name in ("probe", "probe_output")), None)
    if probe is not None and not looked_at:
        errors.append(layers.NoProbe(probe.at))


def _region(item: ast.LayersDecl, within: Elaborator) -> ir.Region:
    where: Where
    if item.where is None:
        where = ir.Integration(at=item.span)
    elif isinstance(item.where, ast.ModelRange):
        where = ir.WholeModel(at=item.where.span)
    else:
        where = ir.Blocks(item.where.first, item.where.last, at=item.where.span)
        if item.where.part is not None and item.where.part.text in ir.SUBLAYERS:
            where = ir.Sublayers(where, item.where.part.text, at=item.where.part.span)
    keep = cast("Literal['residual', 'output', 'increment', 'gap'] | None", item.keep and item.keep.text)
    forecast, bands, nearest = None, None, None
    if item.keep is not None and item.stand_in is not None and asks_nearest(item.stand_in):
        nearest = elaborate_nearest(item.stand_in, item.keep, item.where, within)
    elif item.keep is not None and item.stand_in is not None and isinstance(where, ir.WholeModel):
        bands = elaborate_bands(item.stand_in, item.keep, within)
    elif item.keep is not None and item.stand_in is not None:
        forecast = elaborate_forecast(item.stand_in, item.keep, blocks_of(where) is None, within)
    name = None if item.name is None else item.name.text
    if item.each and (item.keep is None or blocks_of(where) is None):
        within.report(layers.NotEach(item.span, "always computed" if item.keep is None else "the whole model"))
    return ir.Region(where, keep, forecast, name, item.each or None, bands, nearest=nearest, at=item.span)


def _depth(region: ir.Region) -> tuple[int, int, int]:
    blocks, part = blocks_of(region.where), part_of(region.where)
    if blocks is None:
        return 1, 0, 0
    return 0, block_bounds(blocks, _DEEP)[0], 0 if part is None else ir.SUBLAYERS.index(part)


def _claim(where: Where, other: Where) -> str:
    """What `where` claims that is claimed already, in words; empty if nothing."""
    if isinstance(where, ir.Integration | ir.WholeModel):
        return f"claims {_ALL[type(other)]} again" if type(where) is type(other) else "contains every block"
    if isinstance(other, ir.Integration | ir.WholeModel):
        return f"lies within {_ALL[type(other)]}"
    both = shared_blocks(where, other, _DEEP)
    if both is None:
        return ""
    first, last = (block - _DEEP if block > _DEEP // 2 else block for block in both)
    part = part_of(where) or part_of(other)
    of = "" if part is None else f"the `{part}` of "
    return f"claims {of}block {first} again" if first == last else f"claims {of}blocks {first} to {last} again"
