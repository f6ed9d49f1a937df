"""Rules and guards that have no effect, whatever is measured."""

from __future__ import annotations

from typing import assert_never

from mccompile import ir
from mccompile.language.intervals import MOST_STEPS, Ranges, reach


def always_computes(rule: ir.Rule, ranges: Ranges) -> bool:
    """The rule reuses nothing at any step."""
    match rule:
        case ir.Compute():
            return True
        case ir.StepMask(compute):
            return all(compute)
        case ir.Every(n):
            return reach(n, ranges).high <= 1
        case ir.Top(share, _):
            return reach(share, ranges).low >= 1
        case ir.Reuse():
            return False
        case _:
            assert_never(rule)


def guard_without_effect(field: str, number: ir.Expr, ranges: Ranges) -> str:
    """Why a guard never changes a decision, or leaves none to the rule; "" where it has an effect.

    field: the field of ir.Reuse that the guard sets.
    """
    low, high = reach(number, ranges).low, reach(number, ranges).high
    match field:
        case "vote" if low >= 1:
            return "no place is computed: more than all of its frames never are"
        case "hold_below" if high <= 0:
            return "a share is never below 0%"
        case "hold_below" if low >= 1:
            return "everything short of a whole chunk is held back"
        case "all_above" if low >= 1:
            return "a share is never above 100%"
        case "max_reused" if low >= 1:
            return "no more than all tokens are ever reused"
        case "max_reused" if high <= 0:
            return "no token may be reused"
        case "all_at" if high <= 1:
            return "everything is computed at every step"
        case "all_at" if low >= MOST_STEPS:
            return f"no run has more than {MOST_STEPS} steps, and the first one is computed anyway"
        case "max_consecutive" | "max_total" if low >= MOST_STEPS:
            return f"no run has more than {MOST_STEPS} steps"
        case _:
            return ""
