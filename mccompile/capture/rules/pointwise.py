"""Operators that work element by element: every row depends on its own row."""

from __future__ import annotations

import torch
from torch import fx

from mccompile.capture.dependence import written_by
from mccompile.capture.facts import TensorFact
from mccompile.capture.rows import Labels, has_cut
from mccompile.capture.scope import LabelRule, Scope

aten = torch.ops.aten

POINTWISE = (
    *(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Tensor),
    *(aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor),
    *(aten.neg.default, aten.abs.default, aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default),
    *(aten.exp.default, aten.log.default, aten.cos.default, aten.sin.default, aten.sigmoid.default),
    *(aten.tanh.default, aten.silu.default, aten.gelu.default, aten.relu.default, aten.softplus.default),
    *(aten.leaky_relu.default, aten.elu.default, aten.mish.default, aten.hardtanh.default, aten.clamp.default),
    *(aten.clamp_min.default, aten.clamp_max.default, aten.erf.default, aten.square.default),
    *(aten.hardswish.default, aten.hardsigmoid.default, aten.selu.default, aten.celu.default, aten.log1p.default),
    *(aten.expm1.default, aten.exp2.default, aten.sign.default, aten.floor.default, aten.round.default),
    *(aten.pow.Scalar, aten.remainder.Scalar, aten.floor_divide.default, aten.atan2.default),
    aten.expand_as.default,
    *(aten.maximum.default, aten.minimum.default, aten.where.self, aten.masked_fill.Scalar),
    *(aten.masked_fill.Tensor, aten.lerp.Scalar, aten.lerp.Tensor, aten.addcmul.default, aten.polar.default),
    *(aten.eq.Scalar, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar),
    *(aten.eq.Tensor, aten.ne.Tensor, aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor),
    *(aten.logical_not.default, aten.logical_and.default, aten.logical_or.default, aten.bitwise_not.default),
    *(aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.__and__.Tensor, aten.__or__.Tensor),
    *(aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default),
    *(aten.lift_fresh_copy.default, aten._to_copy.default, aten.nan_to_num.default, aten.dropout.default),
    *(aten.empty_like.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
    # written in place: the result is the first operand, whose rows must be those of the others
    *(aten.copy_.default, aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor),
    *(aten.silu_.default, aten.relu_.default, aten.gelu_.default, aten.neg_.default),
)
# The second operand only tells dtype and device.
CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)


def pointwise(scope: Scope, node: fx.Node) -> Labels:
    """Operands meet element by element."""
    operands = [o for o in node.all_input_nodes if isinstance(scope.facts[o], TensorFact)]
    labels = scope.meet(node, operands)
    if written_by(node) and any(has_cut(rows) for rows in labels):
        raise scope.refusal(node, "writes into a part of the video tokens")
    return labels


def cast(scope: Scope, node: fx.Node) -> Labels:
    """The labels of the value that is cast."""
    return scope.of(scope.tensor(node))


def view_as_complex(scope: Scope, node: fx.Node) -> Labels:
    """[..., 2] real to [...] complex."""
    return scope.of(scope.tensor(node))[:-1]


def view_as_real(scope: Scope, node: fx.Node) -> Labels:
    """[...] complex to [..., 2] real."""
    return (*scope.of(scope.tensor(node)), None)


RULES: dict[object, LabelRule] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(CASTS, cast),
    aten.view_as_complex.default: view_as_complex,
    aten.view_as_real.default: view_as_real,
}
