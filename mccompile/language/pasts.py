"""Numbers of earlier steps: what `kept`, `before` and `cumulative` may be asked about."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile import ir
from mccompile.language.types import TypedNumber
from mccompile.language.walk import walk

MOST_KEPT = 8
"""The most earlier computations that a policy can look back at."""


def no_past(of: TypedNumber, signals: Mapping[str, ir.Signal]) -> str:
    """Why a number has no earlier value to ask for; "" where it has one."""
    if of.constant:
        return "it is the same at every step"
    found = list(walk(of.expr, signals))
    late = of.late or any(isinstance(e, ir.SignalRef) and e.name in signals and signals[e.name].late for e in found)
    if late:
        return "a value of `block_output` is that of the step before already"
    if any(isinstance(e, ir.Kept | ir.Before) for e in found):
        return "it contains an earlier value itself"
    if any(isinstance(e, ir.Accumulate) for e in found):
        return "an account is 0 whenever the cell was computed"
    return ""


def no_mean(of: TypedNumber, signals: Mapping[str, ir.Signal]) -> str:
    """Why a number has no mean over steps; "" where it has one."""
    if of.constant:
        return "it is the same at every step"
    if of.late:
        return "what is read from `block_output` is known by the name of a signal: `signal motion = ...`"
    found = list(walk(of.expr, signals, late=False))
    if any(isinstance(e, ir.Kept | ir.Before | ir.Average | ir.Smooth) for e in found):
        return "it contains an earlier value itself"
    if any(isinstance(e, ir.Accumulate) for e in found):
        return "an account is 0 whenever the cell was computed"
    return ""


def clocked(of: ir.Expr) -> bool:
    """Whether the chunk's own step alone determines `of`: it consists of clock values, tables and numbers."""
    kinds = ir.Const | ir.ClockRef | ir.Table | ir.Polynomial | ir.Stairs | ir.Apply
    return all(isinstance(e, kinds) for e in walk(of, {}))
