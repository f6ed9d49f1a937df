"""What a decision was made by, told to the host beside the mask: accounts, signals, fits, and the guards that acted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch

from mccompile import ir
from mccompile.language.walk import walk_rule
from mccompile.lowering.expressions import Leaves, evaluate
from mccompile.lowering.fire import Acted, CellAccounts, guards_of


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One row of what is measured, [B, G].

    what: the highest and the lowest account of the chunk's cells after the step's addition (`name` of those with a name
    of their own); a signal's mean; the lowest
    value of a fit (polynomial `of`) and the mean of what it is fitted to; 1 where a guard acted.
    """

    what: Literal["highest", "lowest", "signal", "fit", "fitted", "guard"]
    name: str = ""
    of: ir.Polynomial | None = None


def rows_of(rule: ir.Reuse | ir.Top, signals: Mapping[str, ir.Signal]) -> tuple[MeasuredRow, ...]:
    """What is told of a rule's decisions: its account, the signals that it reads, its fits, its guards."""
    read = tuple(dict.fromkeys(walk_rule(rule, signals, late=False)))
    sums = dict.fromkeys("" if e.into == "account" else e.into for e in read if isinstance(e, ir.Accumulate))
    ends = (row for name in sums for row in (MeasuredRow("highest", name), MeasuredRow("lowest", name)))
    named = (MeasuredRow("signal", e.name) for e in read if isinstance(e, ir.SignalRef))
    fits = (MeasuredRow(what, "", e) for e in read if isinstance(e, ir.Polynomial) for what in ("fit", "fitted"))
    guards = (MeasuredRow("guard", name) for name, limit in guards_of(rule).items() if limit is not None)
    return (*ends, *named, *fits, *guards)


def told_by(row: MeasuredRow, leaves: Leaves, accounts: CellAccounts, acted: Acted) -> torch.Tensor:
    """One row of what a rule's decision was made by, [B, G] float32."""
    nothing = torch.zeros_like(accounts["account"])
    match row.what:
        case "highest":
            return (nothing + accounts[row.name or "account"]).amax((2, 3))
        case "lowest":
            return (nothing + accounts[row.name or "account"]).amin((2, 3))
        case "signal":
            return (nothing + evaluate(ir.SignalRef(row.name), leaves)).mean((2, 3))
        case "fit":
            assert row.of is not None
            return (nothing + evaluate(row.of, leaves)).amin((2, 3))
        case "fitted":
            assert row.of is not None
            return (nothing + evaluate(row.of.of, leaves)).mean((2, 3))
        case "guard":
            return (nothing + acted[row.name].float()).amax((2, 3))
        case _:
            assert_never(row.what)


