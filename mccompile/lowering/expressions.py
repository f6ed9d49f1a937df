"""What the expressions of a policy mean on tensors of the layout [B, G, F, P]: sample, chunk, frame, position.

A coarser value has size 1 in the finer axes and broadcasts. All arithmetic is in float32 and in the order of
policy/evaluate.py, so a folded plan and the compiled graph agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import torch

from mccompile import ir
from mccompile.lowering.frames import area, around
from mccompile.lowering.operations import apply, picked
from mccompile.lowering.slots import LikeAnchors
from mccompile.policy.evaluate import horner as horner_of_number

EPS = 1e-8  # of the official MotionCache and TeaCache ratios


EarlierNumber = ir.Kept | ir.Before | ir.Average | ir.Smooth
"""Numbers in which earlier steps are: the graph reads them from what it keeps."""


@dataclass(frozen=True, slots=True)
class Leaves:
    """What the leaves of an expression are worth in one call; every tensor broadcasts to [B, G, F, P]."""

    params: Mapping[str, torch.Tensor]
    clock: Mapping[str, torch.Tensor]
    tables: Mapping[ir.Table | ir.Cumulative, torch.Tensor]
    changes: Mapping[ir.Change, torch.Tensor]
    motions: Mapping[ir.FrameDiff, torch.Tensor]
    late: Mapping[str, torch.Tensor]  # late signals, as the previous step left them
    signals: Mapping[str, ir.Signal]
    accounts: Mapping[str, torch.Tensor]  # before this step, by name; none outside of a rule
    pasts: Mapping[EarlierNumber, torch.Tensor] = field(default_factory=dict)  # numbers of earlier steps
    places: torch.Tensor | None = None  # [rows, columns] of a frame, of which only the sizes are read
    alike: Mapping[LikeAnchors, torch.Tensor] = field(default_factory=dict)
    frequency: torch.Tensor | None = None  # within the gain of a filter, [1, 1, 1, n]


def evaluate(expr: ir.Expr, leaves: Leaves) -> torch.Tensor:
    """Returns the value of `expr`. Raises KeyError for a leaf that the call lacks, which is an error of ours."""
    match expr:
        case ir.Const(value):
            return value  # a Python number broadcasts like a tensor
        case ir.ParamRef(name):
            return leaves.params[name]
        case ir.SignalRef(name):
            signal = leaves.signals[name]
            return leaves.late[name] if signal.late else evaluate(signal.expr, leaves)
        case ir.ClockRef(what):
            return leaves.clock[what]
        case ir.Depth():
            return leaves.clock["depth"]
        case ir.Table() | ir.Cumulative():
            return leaves.tables[expr]
        case ir.Kept() | ir.Before() | ir.Average() | ir.Smooth():
            return leaves.pasts[expr]
        case ir.Stairs(of, limits, values):
            return picked(evaluate(of, leaves), limits, values)
        case ir.Around(how, of, by):
            return around(how, evaluate(of, leaves), by, _places(leaves))
        case ir.Area(rows, columns):
            return area(rows, columns, _places(leaves))
        case ir.Change():
            return leaves.changes[expr]
        case ir.Similarity(of, stride):
            return leaves.alike[LikeAnchors(of.name, stride)]
        case ir.FrameDiff():
            return one_where_undefined(leaves.motions[expr])
        case ir.Normalise(norm, of, floor, power):
            raw = leaves.motions[of] if isinstance(of, ir.FrameDiff) else evaluate(of, leaves)
            return one_where_undefined(normalise(norm, raw, evaluate(floor, leaves), evaluate(power, leaves)))
        case ir.Polynomial(of, coefficients):
            return horner(evaluate(of, leaves), coefficients)
        case ir.Accumulate(of, into):
            return leaves.accounts[into] + evaluate(of, leaves)
        case ir.Reduce(how, of, to):
            return reduce_to(how, evaluate(of, leaves), to)
        case ir.Apply(op, args):
            return apply(op, [evaluate(a, leaves) for a in args])
        case ir.Frequency():
            if leaves.frequency is None:
                raise KeyError("a frequency outside the gain of a filter")
            return leaves.frequency
        case ir.SpectralWeight():
            raise KeyError("a weight of kept results, which the host knows")
        case ir.SourceRef():
            raise KeyError(f"source {expr.name} outside a change or a frame difference")
        case _:
            assert_never(expr)


def _places(leaves: Leaves) -> torch.Tensor:
    if leaves.places is None:
        raise KeyError("the rows and columns of a frame, where the graph does not take them")
    return leaves.places


def horner(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    """Returns a polynomial, highest power first: ((c0 x + c1) x + c2) ... A literal gives a literal."""
    if isinstance(x, int | float):
        with np.errstate(all="ignore"):
            return float(horner_of_number(np.float32(x), coefficients))
    value: torch.Tensor = x * 0.0 + coefficients[0]
    for c in coefficients[1:]:
        value = value * x + c
    return value


def normalise(norm: ir.Norm, m: torch.Tensor, floor: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Normalises a motion map [B, G, F, P] per frame, as MotionCache does for its motion weights."""
    match norm:
        case "mean":
            return m / (m.mean(-1, keepdim=True) + EPS)
        case "max":
            return m / (m.amax(-1, keepdim=True) + EPS)
        case "min_max":
            low, high = m.amin(-1, keepdim=True), m.amax(-1, keepdim=True)
            scaled = (1.0 - floor) * (m - low) / (high - low + EPS)
            if isinstance(power, float) and power == 1.0:
                return floor + scaled
            return floor + (1.0 - floor) * ((m - low) / (high - low + EPS)) ** power
        case _:
            assert_never(norm)


def one_where_undefined(weight: torch.Tensor) -> torch.Tensor:
    """Replaces undefined weights by 1: a frame without a predecessor has no motion to weigh by."""
    return torch.where(torch.isnan(weight), torch.ones_like(weight), weight)


def reduce_to(how: ir.Reduction, value: torch.Tensor, to: ir.Granularity) -> torch.Tensor:
    """Reduces over the axes finer than `to`, which keep size 1."""
    dims = {
        ir.Granularity.STEP: (1, 2, 3),
        ir.Granularity.CHUNK: (2, 3),
        ir.Granularity.FRAME: (3,),
    }[to]
    match how:
        case "mean":
            return value.mean(dims, keepdim=True)
        case "max":
            return value.amax(dims, keepdim=True)
        case "min":
            return value.amin(dims, keepdim=True)
        case _:
            assert_never(how)


def change(kind: ir.Distance, now: torch.Tensor, before: torch.Tensor, over: ir.Granularity) -> torch.Tensor:
    """Measures how far a source is from its former value. Both are [B, G, F, P, C], with size 1 where they do not vary.

    Returns [B, G, F, P] with size 1 in the axes finer than `over`. The mean runs over these axes and the channels.
    """
    dims = {
        ir.Granularity.STEP: (1, 2, 3, 4),
        ir.Granularity.CHUNK: (2, 3, 4),
        ir.Granularity.FRAME: (3, 4),
        ir.Granularity.TOKEN: (4,),
    }[over]
    now, before = now.float(), before.float()
    match kind:
        case "rel_l1":
            moved, size = (now - before).abs().mean(dims, keepdim=True), before.abs().mean(dims, keepdim=True)
            value = moved / (size + EPS)
        case "l1":
            value = (now - before).abs().mean(dims, keepdim=True)
        case "l2":
            value = (now - before).square().mean(dims, keepdim=True).sqrt()
        case "deviation":
            value = (now - now.mean(dims, keepdim=True)).square().mean(dims, keepdim=True).sqrt()
        case "cosine":
            dot = (now * before).sum(dims, keepdim=True)
            norms = now.square().sum(dims, keepdim=True) * before.square().sum(dims, keepdim=True)
            value = 1.0 - dot / (norms.sqrt() + EPS)
        case _:
            assert_never(kind)
    return value.squeeze(-1)


def frame_difference(
    h: torch.Tensor, tail: torch.Tensor, has_tail: torch.Tensor, first: torch.Tensor, relative: bool
) -> torch.Tensor:
    """Measures each token's motion against the frame before (MotionCache's map). Returns [B, G, F, P] float32.

    h: [B, G, F, P, C]. tail: the last frame of the chunk before, [B, G, P, C]. has_tail, first: [B, G, 1, 1] bool.
    The first frame of the video copies the map of its second, or is 1 if there is none. With relative=False, as in
    MAGI-1's variant, it is undefined (NaN), so it weighs 1 however it is normalised. A chunk whose predecessor was
    never seen gets 1.
    """
    h, last = h.float(), tail.float().unsqueeze(2)
    head = _moved(h[:, :, :1], last, relative)  # apart from the rest: joined first, each element would be looked up
    rest = _moved(h[:, :, 1:], h[:, :, :-1], relative)
    ones = torch.ones_like(head)
    second = torch.cat([rest, ones], 2)[:, :, :1] if relative else ones * float("nan")
    head = torch.where(first, second, torch.where(has_tail, head, ones))
    return torch.cat([head, rest], 2)


def _moved(now: torch.Tensor, before: torch.Tensor, relative: bool) -> torch.Tensor:
    motion = (now - before).abs().mean(-1)
    return motion / (before.abs().mean(-1) + EPS) if relative else motion


def last_frames(h: torch.Tensor, tail: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Returns the last frame of each chunk, new where `update` [B, G, 1, 1] holds. tail: [B, G + 1, P, C] float32."""
    fresh = torch.where(update, h[:, :, -1].float(), tail[:, 1:])
    return torch.cat([tail[:, :1], fresh], 1)
