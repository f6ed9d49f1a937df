"""Which cells a rule computes in one call: its condition, then its guards, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch

from mccompile import ir
from mccompile.language.walk import deciding, walk, walk_rule
from mccompile.language.ways import ways_of
from mccompile.lowering.expressions import Leaves, evaluate
from mccompile.lowering.operations import apply
from mccompile.lowering.pasts import Get
from mccompile.lowering.slots import Count

GuardName = Literal["vote", "hold", "compute all", "at most in a row", "at most in total", "at most of tokens"]
CellAccounts = Mapping[str, torch.Tensor]  # by name, [B, G, F, P]
Acted = Mapping[str, torch.Tensor]  # by name, whether a guard changed the decision of a cell


def guards_of(rule: ir.Reuse | ir.Top) -> dict[GuardName, ir.Expr | None]:
    """Returns the guards of a rule by name, in the order in which they apply."""
    if isinstance(rule, ir.Top):
        return {"at most in a row": rule.max_consecutive, "at most in total": rule.max_total}
    return {
        "vote": rule.vote, "hold": rule.hold_below, "compute all": rule.all_above,
        "at most in a row": rule.max_consecutive, "at most in total": rule.max_total,
        "at most of tokens": rule.max_reused,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fired:
    """What a rule makes of the cells. cells: those that it computes, [B, G, F, P] bool.

    accounts: with what this step adds. acted: the guards that changed a decision. way: see slots.ChosenWay.
    """

    cells: torch.Tensor
    accounts: CellAccounts
    acted: Acted
    way: torch.Tensor


def fire(rule: ir.Reuse | ir.Top, leaves: Leaves, get: Get) -> Fired:
    """Returns what a rule decides in one call.

    A cell whose signals are not finite is computed, whatever the condition and the guards say.
    """
    if isinstance(rule, ir.Top):
        grown = _grown(rule.by, leaves)
        score = torch.zeros_like(grown["account"]) + evaluate(rule.by, leaves)
        share = evaluate(rule.share, leaves)
        if any(isinstance(e, ir.ClockRef | ir.Depth | ir.Table) for e in walk(rule.share, leaves.signals)):
            share = share.flatten(2)  # each chunk has its own
        fired, undefined = _ranked(score, share), ~torch.isfinite(score)
    else:
        if rule.granularity <= ir.Granularity.CHUNK:  # one account per chunk: that of the token that drifted most
            alike = {n: a.amax((2, 3), keepdim=True) + a * 0.0 for n, a in leaves.accounts.items()}
            leaves = replace(leaves, accounts=alike)
        grown = _grown(rule.condition, leaves)
        fired = apply("not", [evaluate(rule.condition, leaves)]) | (leaves.accounts["account"] < float("-inf"))
        undefined = _undefined(rule.condition, leaves, grown)
    way = _way(rule, leaves)
    account = grown[account_of(rule, leaves.signals)]
    acted: dict[str, torch.Tensor] = {}
    for name, limit in guards_of(rule).items():
        if limit is not None:
            guarded = _guarded(name, fired, evaluate(limit, leaves), account, get)
            acted[name], fired = guarded != fired, guarded
    return Fired(fired | undefined, grown, acted, way)


def _way(rule: ir.Reuse | ir.Top, leaves: Leaves) -> torch.Tensor:
    """Returns the first alternative whose condition holds; the last one where a guard reuses though none holds."""
    account = leaves.accounts["account"]
    ways = ways_of(rule) if isinstance(rule, ir.Reuse) else ()
    found = torch.full_like(account, max(len(ways) - 1, 0), dtype=torch.uint8)
    for number, way in reversed([*enumerate(ways[:-1])]):
        fails = apply("not", [evaluate(way.condition, leaves)]) | (account < float("-inf"))
        found = torch.where(fails, found, torch.full_like(found, number))
    return found


def _guarded(
    name: GuardName, fired: torch.Tensor, limit: torch.Tensor | float, account: torch.Tensor, get: Get
) -> torch.Tensor:
    """Returns what a guard makes of the cells that fire, [B, G, F, P]."""
    match name:
        case "vote":
            return (fired.float().mean(2, keepdim=True) > limit) | (fired & ~fired)
        case "hold":
            return fired & ~(_share(fired) < limit)
        case "compute all":  # of what is left: a chunk that was held computes nothing
            return fired | (_share(fired) > limit)
        case "at most in a row":
            return fired | (get(Count("streak")) >= limit)
        case "at most in total":
            return fired | (get(Count("total")) >= limit)
        case "at most of tokens":  # what is computed anyway counts first: the guard adds only what is missing
            return fired | _ranked(torch.where(fired, float("inf"), account), 1.0 - limit)
        case _:
            assert_never(name)


def _undefined(condition: ir.Expr, leaves: Leaves, grown: CellAccounts) -> torch.Tensor:
    """Returns the cells whose decision would rest on what is no finite number."""
    account = grown["account"]
    undefined = ~torch.isfinite(account)
    for other in grown.values():
        undefined = undefined | ~torch.isfinite(other)
    for e in deciding(condition, leaves.signals):
        if not isinstance(e, ir.Accumulate):
            undefined = undefined | ~torch.isfinite(torch.zeros_like(account) + evaluate(e, leaves))
    return undefined


def _share(fired: torch.Tensor) -> torch.Tensor:
    """Returns the share of each chunk's tokens that is computed, [B, G, 1, 1]."""
    return fired.float().mean((2, 3), keepdim=True)


def _grown(read: ir.Expr, leaves: Leaves) -> dict[str, torch.Tensor]:
    """Returns the accounts with what the rule adds to those that it reads: the arguments of its `accumulate`."""
    sums = (e for e in walk(read, leaves.signals) if isinstance(e, ir.Accumulate))
    added = {e.into: evaluate(e.of, leaves) for e in sums}
    return {n: a + added.get(n, 0.0) for n, a in leaves.accounts.items()}


def account_of(rule: ir.Reuse | ir.Top, signals: Mapping[str, ir.Signal]) -> str:
    """Returns the name of the account that a rule reads first."""
    return next((e.into for e in walk_rule(rule, signals) if isinstance(e, ir.Accumulate)), "account")


def _ranked(score: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Selects the `share` of a chunk's tokens with the highest score, rounded up. Ties go by position."""
    flat = score.flatten(2)
    order = flat.argsort(dim=-1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter(-1, order, (torch.ones_like(order).cumsum(-1) - 1))
    chosen = rank < (share * flat.size(2))
    return chosen.view(score.size(0), score.size(1), score.size(2), score.size(3))
