"""A policy with its parameters settled: numbers in the place of parameters, expressions in the place of signals.

Two policies that say the same in other words (a parameter for a literal, a signal for its expression) become equal
here, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np

from mccompile import ir
from mccompile.arithmetic.operations import OPERATIONS
from mccompile.policy.bind import BoundPolicy, bind

Replacement = Callable[[ir.Expr], ir.Expr | None]


def settled(bound: BoundPolicy) -> BoundPolicy:
    """The same policy without parameters and signals; numbers are rounded to float32, as the graphs have them."""
    signals = {s.name: s for s in bound.ir.signals}

    def without(expr: ir.Expr) -> ir.Expr | None:
        match expr:
            case ir.Const(value):
                return ir.Const(float(np.float32(value)), at=expr.at)
            case ir.ParamRef(name):
                return ir.Const(float(np.float32(bound.values[name])), at=expr.at)
            case ir.SignalRef(name):
                return cast("ir.Expr", rebuilt(signals[name].expr, without))
            case ir.Apply(op, args) if not OPERATIONS[op].truth:
                return _folded(ir.Apply(op, tuple(cast("ir.Expr", rebuilt(a, without)) for a in args), at=expr.at))
            case _:
                return None

    bare = replace(bound.ir, params=(), signals=())
    return bind(cast("ir.PolicyIR", rebuilt(bare, without)), {})


def _folded(expr: ir.Apply) -> ir.Expr:
    """The number of an operation on numbers."""
    if not all(isinstance(a, ir.Const) for a in expr.args):
        return expr
    numbers = (np.float32(a.value) for a in expr.args if isinstance(a, ir.Const))
    with np.errstate(all="ignore"):
        return ir.Const(float(OPERATIONS[expr.op].value(*numbers)), at=expr.at)


def with_tables(bound: BoundPolicy, tables: Mapping[ir.Expr, tuple[float, ...]]) -> BoundPolicy:
    """A settled policy in which measured values are told: a table for each of the expressions that measure.

    For a distance to the last computation the table is that of the source, as one number; see `remembered`.
    """

    def told(expr: ir.Expr) -> ir.Expr | None:
        if expr not in tables:
            return None
        values = ir.Table(tables[expr])
        return _moved(expr, values) if isinstance(expr, ir.Change) and remembered(expr) else values

    return bind(cast("ir.PolicyIR", rebuilt(bound.ir, told)), {})


def remembered(expr: ir.Expr) -> bool:
    """A distance to the last computation that one number of the source gives; of an angle none does."""
    if not isinstance(expr, ir.Change) or expr.distance == "cosine":
        return False
    return expr.since == "compute" and expr.n is None and expr.a is None


def _moved(change: ir.Change, source: ir.Expr) -> ir.Expr:
    """How far one number moved since the last computation."""
    before = ir.Kept(source, 1)
    distance = ir.Apply("abs", (ir.Apply("sub", (source, before)),))
    return ir.Apply("div", (distance, ir.Apply("abs", (before,)))) if change.distance == "rel_l1" else distance


def rebuilt(value: object, change: Replacement) -> object:
    """A tree of the IR in which `change` has replaced expressions, from the root down; None leaves one as it is."""
    if isinstance(value, ir.Expr):
        found = change(value)
        if found is not None:
            return found
    if isinstance(value, ir.Node):
        names = (f.name for f in fields(value) if f.compare)
        made: dict[str, Any] = {name: rebuilt(getattr(value, name), change) for name in names}
        return replace(value, **made)
    return tuple(rebuilt(item, change) for item in value) if isinstance(value, tuple) else value
