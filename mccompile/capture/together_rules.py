"""What operators are on tokens that are together: one rule for each sort. Any other operator takes them apart again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import fx

from mccompile.capture.dependence import written_by
from mccompile.capture.factors import SAMPLES, TOKENS, Apart, Unfit, met, moved
from mccompile.capture.facts import Extent, Fact, ScalarFact, TensorFact, TupleFact, is_dynamic
from mccompile.capture.moves import LAYOUTS, AxisMap, Unmapped, axis_map
from mccompile.capture.rules.attention import SDPA
from mccompile.capture.rules.channel import REDUCTIONS, SOFTMAX
from mccompile.capture.rules.pointwise import CASTS, POINTWISE
from mccompile.capture.rules.segment import CATS, SPLITS
from mccompile.capture.token_values import RESHAPES, TokenValues

aten = torch.ops.aten
MadeTogether: TypeAlias = tuple[Apart, fx.Node]  # the factors of a result, and the result with its tokens together
TogetherRule: TypeAlias = Callable[[TokenValues, fx.Node], MadeTogether]
_PICKS = (aten.unbind.int, aten.select.int)
_PERMUTES = (aten.permute.default, aten.transpose.int, aten.swapaxes.default, aten.swapdims.default, aten.movedim.int,
             aten.mT.default)  # fmt: skip


def _source(values: TokenValues, node: fx.Node) -> fx.Node:
    """The first operand, which must have tokens, or be repeated for them; all others are weights. Raises Unfit."""
    source, *others = node.all_input_nodes
    if node.args[0] is not source or any(o in values.own for o in others):
        raise Unfit
    return source


def _fact(values: TokenValues, node: fx.Node, own: Apart) -> Fact:
    """What is known of a result whose tokens are together."""
    fact = values.facts[node]
    match fact:
        case TensorFact(shape, dtype):
            return TensorFact(values.shape_of(own, shape), dtype)
        case TupleFact(items) if all(isinstance(x, TensorFact) for x in items):
            return TupleFact(
                tuple(TensorFact(values.shape_of(own, x.shape), x.dtype) for x in items if isinstance(x, TensorFact))
            )
        case _:
            raise Unfit


def _again(values: TokenValues, node: fx.Node, own: Apart, args: tuple[object, ...]) -> MadeTogether:
    """The operator of other arguments."""
    return own, values.put(node.target, args, _fact(values, node, own), node, node.meta, node.kwargs)


def _channels(count: Callable[[fx.Node], int]) -> TogetherRule:
    """An operator along the last axes, `count` of them."""

    def rule(values: TokenValues, node: fx.Node) -> MadeTogether:
        source = _source(values, node)
        own = values.own[source]
        if any(own.axes[-count(node) :]):
            raise Unfit
        return _again(values, node, own, (values.put_together(source), *node.args[1:]))

    return rule


def _normalised(node: fx.Node) -> int:
    sizes = node.args[1]
    return len(sizes) if isinstance(sizes, list | tuple) else 1


def pointwise(values: TokenValues, node: fx.Node) -> MadeTogether:
    """Operands meet element by element."""
    shape = values.shape(node)
    operands = [o for o in node.all_input_nodes if isinstance(values.facts.get(o), TensorFact)]
    own = met([values.own[o] for o in operands if o in values.own])
    axes = (*((),) * (len(shape) - len(own.axes)), *own.axes)
    varies = own.varies or any(values.varies_beside(o, axes) for o in operands if o not in values.own)
    own = Apart(axes, varies)
    given = {o: values.aligned(o, own, node) for o in operands}
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: given.get(n, n))
    return own, values.put(node.target, args, _fact(values, node, own), node, node.meta, kwargs)


def cast(values: TokenValues, node: fx.Node) -> MadeTogether:
    """A second operand only tells dtype and device."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source not in values.own:
        raise Unfit
    rest = fx.node.map_arg(node.args[1:], lambda n: values.put_together(n) if n in values.own else n)
    return _again(values, node, values.own[source], (values.put_together(source), *rest))


def item(values: TokenValues, node: fx.Node) -> MadeTogether:
    """One of several results."""
    source = _source(values, node)
    return _again(values, node, values.own[source], (values.made[source], node.args[1]))


def along(position: int, default: int = 0) -> TogetherRule:
    """An operator along one axis, which stays, at `position` among the arguments."""

    def rule(values: TokenValues, node: fx.Node) -> MadeTogether:
        source = _source(values, node)
        own, args = values.own[source], list(node.args)
        axis = args[position] if len(args) > position else node.kwargs.get("dim", default)
        if not isinstance(axis, int) or "dim" in node.kwargs or (len(args) <= position and default == 0):
            raise Unfit
        place = own.place(axis)
        if len(args) > position:
            args[position] = place
        elif place != len(own.items) - 1:
            raise Unfit
        return _again(values, node, own, (values.put_together(source), *args[1:]))

    return rule


def slice_(values: TokenValues, node: fx.Node) -> MadeTogether:
    """A part of an axis that is none of tokens, or all of any axis."""
    source = _source(values, node)
    if values.shape(source) == values.shape(node):
        return values.own[source], values.put_together(source)
    return along(1)(values, node)


def reduce(values: TokenValues, node: fx.Node) -> MadeTogether:
    """A mean or a sum over axes that are none of tokens."""
    source = _source(values, node)
    own, args = values.own[source], list(node.args)
    listed = args[1] if len(args) > 1 else None
    if not isinstance(listed, list | tuple) or node.target is aten.linalg_vector_norm.default:
        raise Unfit
    axes = [int(a) % len(own.axes) for a in listed if isinstance(a, int)]
    args[1] = [own.place(a) for a in axes]
    keeps = len(args) > 2 and args[2] is True
    left = tuple(factors for i, factors in enumerate(own.axes) if keeps or i not in axes)
    return _again(values, node, Apart(left, own.varies), (values.put_together(source), *args[1:]))


def cat(values: TokenValues, node: fx.Node) -> MadeTogether:
    """Joins along an axis that is none of tokens. Its operands have all others alike."""
    parts = node.args[0]
    if not isinstance(parts, list | tuple) or any(p not in values.own for p in parts):
        raise Unfit
    owns = {values.own[p] for p in parts}
    axis = node.args[1] if len(node.args) > 1 else 0
    if len(owns) != 1 or not isinstance(axis, int):
        raise Unfit
    (own,) = owns
    if node.target is aten.stack.default:
        axis %= len(own.axes) + 1
        own = Apart((*own.axes[:axis], (), *own.axes[axis:]), own.varies)
    return _again(values, node, own, ([values.put_together(p) for p in parts], own.place(axis)))


def complex_(values: TokenValues, node: fx.Node) -> MadeTogether:
    """[..., 2] real to [...] complex, and back."""
    source = _source(values, node)
    own = values.own[source]
    if node.target is aten.view_as_real.default:
        return _again(values, node, Apart((*own.axes, ()), own.varies), (values.put_together(source),))
    if own.axes[-1]:
        raise Unfit
    return _again(values, node, Apart(own.axes[:-1], own.varies), (values.put_together(source),))


def layout(values: TokenValues, node: fx.Node) -> MadeTogether:
    """An operator that moves axes. If it only moves samples, frames and places, nothing is left to do."""
    source = _source(values, node)
    try:
        groups = axis_map(node, values.facts)
    except Unmapped:
        raise Unfit from None
    fact = values.facts[node]
    first = fact.items[0] if isinstance(fact, TupleFact) else fact
    if groups is None or not isinstance(first, TensorFact):
        raise Unfit
    own, old, new = values.own[source], values.shape(source), first.shape
    found = moved(own, groups, old, new, values.extents)
    value = values.put_together(source)
    if node.target in _PICKS:
        axis = node.args[1] if len(node.args) > 1 else 0
        if not isinstance(axis, int):
            raise Unfit
        return _again(values, node, found, (value, own.place(axis), *node.args[2:]))
    if node.target in _PERMUTES:
        return found, _permuted(values, node, own, found, groups)
    if node.target in RESHAPES:
        return found, _reshaped(values, node, own, found, groups)
    raise Unfit


def _permuted(values: TokenValues, node: fx.Node, own: Apart, found: Apart, groups: AxisMap) -> fx.Node:
    origin = {new: old for group in groups for old, new in zip(group.old, group.new, strict=True)}
    items = [item if isinstance(item, str) else origin[item] for item in found.items]
    order = [own.items.index(item) for item in items]
    value = values.put_together(_source(values, node))
    if order == sorted(order):
        return value
    return values.put(aten.permute.default, (value, order), _fact(values, node, found), node, node.meta)


def _reshaped(values: TokenValues, node: fx.Node, own: Apart, found: Apart, groups: AxisMap) -> fx.Node:
    """The axes that are none of tokens, reshaped. Raises Unfit where one of them varies, or tokens lie otherwise."""
    number = {("old", a): i for i, g in enumerate(groups) for a in g.old}
    number |= {("new", a): i for i, g in enumerate(groups) for a in g.new}
    before = [item if isinstance(item, str) else number["old", item] for item in own.items]
    after = [item if isinstance(item, str) else number["new", item] for item in found.items]
    value = values.put_together(_source(values, node))
    fact = _fact(values, node, found)
    assert isinstance(fact, TensorFact)
    if values.shape(value) == fact.shape:
        return value
    if _kept(before, after) != _kept(after, before):
        raise Unfit
    sizes: list[object] = []
    for place, (entry, extent) in enumerate(zip(found.items, fact.shape, strict=True)):
        if entry == TOKENS:
            sizes.append(-1)
        elif entry == SAMPLES:
            sizes.append(values.numbers[SAMPLES])
        elif is_dynamic(extent):
            sizes.append(_same(values, value, before, after[place], extent, node))
        else:
            sizes.append(extent[0])
    return values.put(aten.reshape.default, (value, sizes), fact, node, node.meta)


def _kept(own: Sequence[object], other: Sequence[object]) -> list[object]:
    """The order of those that both have, each once."""
    return list(dict.fromkeys(item for item in own if item in other))


def _same(
    values: TokenValues, value: fx.Node, before: Sequence[object], group: object, extent: Extent, node: fx.Node
) -> fx.Node:
    """The size of an axis that varies and stays as it is."""
    axis = before.index(group)
    if before.count(group) != 1 or values.shape(value)[axis] != extent:
        raise Unfit
    return values.put(aten.sym_size.int, (value, axis), ScalarFact(extent), node, node.meta)


def attention(values: TokenValues, node: fx.Node) -> MadeTogether:
    """Queries of tokens see keys that are those of no token (text): each sees the same where tokens are together."""
    query = node.args[0]
    others = [o for o in node.all_input_nodes if o is not query]
    if not isinstance(query, fx.Node) or query not in values.own or any(o not in values.own for o in others):
        raise Unfit
    own = values.own[query]
    of_others = [values.own[o] for o in others]
    if own.items[-2:] != (TOKENS, len(own.axes) - 1) or any(o.varies for o in of_others):
        raise Unfit
    rank = len(own.items)
    made = {o: values.put_together(o) for o in (query, *others)}
    if any(len(values.shape(m)) != rank or values.own[o].items[0] != SAMPLES for o, m in made.items()):
        raise Unfit
    if own.items[0] != SAMPLES or (len(node.args) > 5 and node.args[5]):
        raise Unfit
    found = Apart((*own.axes[:-1], ()), varies=True)
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: made.get(n, n))
    return found, values.put(node.target, args, _fact(values, node, found), node, node.meta, kwargs)


RULES: Mapping[object, TogetherRule] = {
    **{target: pointwise for target in POINTWISE if target is not aten.expand_as.default},
    **dict.fromkeys(CASTS, cast),
    **dict.fromkeys(LAYOUTS, layout),
    aten.linear.default: _channels(lambda node: 1),
    **dict.fromkeys((aten.layer_norm.default, aten.rms_norm.default), _channels(_normalised)),
    **dict.fromkeys(SPLITS, along(2)),
    aten.slice.Tensor: slice_,
    **dict.fromkeys(SOFTMAX, along(1)),
    aten.glu.default: along(1, -1),
    **dict.fromkeys(REDUCTIONS, reduce),
    **dict.fromkeys((*CATS, aten.stack.default), cat),
    **dict.fromkeys((aten.view_as_complex.default, aten.view_as_real.default), complex_),
    operator.getitem: item,
    SDPA: attention,
}


def ruled(values: TokenValues, node: fx.Node) -> MadeTogether:
    """What an operator makes of tokens that are together. Raises Unfit where it cannot run on them."""
    rule = RULES.get(node.target)
    if rule is None or written_by(node):
        raise Unfit
    return rule(values, node)
