"""The forms of a block kind: `full` on all rows, `partial` on the selected rows, `allocate` for its buffers.

before:  sdpa(q, k, v, mask)
full:    k_buffer.copy_(k); v_buffer.copy_(v); sdpa(q, k, v, mask)
partial: sdpa(q, k_buffer.index_copy_(axis, rows, k), v_buffer.index_copy_(axis, rows, v), mask)

The rest of the graph is unchanged. In `partial`, a size written at a token axis becomes the size of the operand.
refuses when: a number of tokens is used as anything other than a size.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence

import torch
from torch import fx

from mccompile.capture.building import BlockForm, counts_as_data
from mccompile.capture.facts import TensorFact
from mccompile.capture.mixing import Mixing
from mccompile.capture.part import AttentionSite, Buffer, Part, Positions, Shared, Stream, Weight
from mccompile.capture.resize import CATS, SPLITS, Cutting, resized
from mccompile.capture.rows import RowSpans, any_video, key, video
from mccompile.capture.rules.attention import mask_of
from mccompile.capture.scope import Scope, TokenAttention
from mccompile.capture.stacks import module_path
from mccompile.capture.streams import Roles
from mccompile.capture.template import Template
from mccompile.capture.types import BufferSpec
from mccompile.capture.whole import as_buffered, is_turned

aten = torch.ops.aten


def row_keys(scope: Scope) -> dict[str, RowSpans]:
    """The row vectors that a partial form takes, by name: rows of keys, and the selection itself where parts join."""
    found = {key(a.key_rows): a.key_rows for a in scope.attentions}
    found |= {key(rows): rows for _, rows in (*scope.kept.values(), *scope.picked.values(), *scope.ends.values())}
    if scope.chooses:
        rows = next(r for labels in scope.labels.values() for r in labels if r is not None)
        found["video"] = (video(next(s.count for s in rows if s.video)),)
    return found


def buffer_specs(template: Template, scope: Scope) -> tuple[BufferSpec, ...]:
    """Two buffers, keys then values, for each attention over video tokens; then one for each value kept whole."""
    count: Counter[str] = Counter()
    specs: list[BufferSpec] = []
    for attention in scope.attentions:
        site = module_path(attention.node).removeprefix(template.path).removeprefix(".") or "attention"
        axis = len(scope.shape(scope.tensor(attention.node, 1))) - 2
        specs += [BufferSpec(f"{site}.{kv}{count[site]}", axis, key(attention.key_rows)) for kv in "kv"]
        count[site] += 1
    for number, (value, (axis, rows)) in enumerate(scope.kept.items()):
        site = module_path(value).removeprefix(template.path).removeprefix(".") or "block"
        specs.append(BufferSpec(f"{site}.all{number}", axis - is_turned(scope, value, axis), key(rows)))
    return tuple(specs)


def _kept_specs(specs: Sequence[BufferSpec], scope: Scope) -> dict[fx.Node, BufferSpec]:
    """The buffer of each value that is kept whole."""
    return dict(zip(scope.kept, specs[len(specs) - len(scope.kept) :], strict=True))


def _mask_of(template: Template, node: fx.Node) -> Shared | None:
    """The shared value that an attention's mask comes from."""
    mask = mask_of(node)
    todo = [mask] if mask is not None else []
    while todo:
        at = todo.pop()
        if at in template.values:
            return Shared(template.values[at].name)
        todo.extend(at.all_input_nodes)
    return None


def full_form(template: Template, roles: Roles, scope: Scope | None) -> Part:
    """All rows; also writes keys and values into the buffers, if the kind has a partial form (`scope`)."""
    form = BlockForm(template, roles, scope or Scope(template.facts))
    _values(form)
    specs = buffer_specs(template, scope) if scope is not None else ()
    buffers = form.extra([Buffer(s.name) for s in specs], [s.name for s in specs])
    form.operands(tuple(template.weights), Weight)
    pairs = {a.node: specs[2 * i : 2 * i + 2] for i, a in enumerate(scope.attentions)} if scope is not None else {}
    kept = _kept_specs(specs, scope) if scope is not None else {}
    for node in template.graph.nodes:
        if node in pairs:
            for spec, operand in zip(pairs[node], node.args[1:3], strict=True):
                form.graph.call_function(aten.copy_.default, (buffers[spec.name], form.built[operand]))
        for value in (v for v in kept if scope is not None and scope.first_reads[v] is node):
            _keep(form, value, buffers[kept[value].name])
        if node.op == "placeholder":
            continue
        new = form.copy(node)
        if node in pairs:
            form.attentions.append(_site(new, template, node, pairs[node]))
    return form.finish([form.built[o] for o in roles.outputs], form.streams(), "FullBlock")


def _keep(form: BlockForm, value: fx.Node, buffer: fx.Node) -> None:
    """Writes all rows of a value into its buffer."""
    made = form.built[value]
    if is_turned(form.scope, value, form.scope.kept[value][0]):
        made = form.graph.call_function(aten.transpose.int, (made, -2, -1))
    form.graph.call_function(aten.copy_.default, (buffer, made))


def _values(form: BlockForm) -> None:
    """The streams and the shared values that a block takes."""
    form.operands(form.roles.streams, Stream)
    form.operands(form.roles.shared, Shared)


def _site(new: fx.Node, template: Template, node: fx.Node, pair: Sequence[BufferSpec]) -> AttentionSite:
    keys, values = (Buffer(s.name) for s in pair)
    new.meta["attention"] = {"buffers": (keys.name, values.name)}
    return AttentionSite(new.name, module_path(node), keys, values, _mask_of(template, node))


def partial_form(template: Template, roles: Roles, scope: Scope) -> Part:
    """The selected rows only; raises Refused where a token count is used as data."""
    form = BlockForm(template, roles, scope, counts=counts_as_data(template, scope))
    _values(form)
    keys = row_keys(scope)
    rows = form.extra([Positions(name) for name in keys], [f"rows_{name}" for name in keys])
    specs = buffer_specs(template, scope)
    buffers = form.extra([Buffer(s.name) for s in specs], [s.name for s in specs])
    form.operands(tuple(template.weights), Weight)
    pairs = {a.node: (a, specs[2 * i : 2 * i + 2]) for i, a in enumerate(scope.attentions)}
    kept = {value: buffers[spec.name] for value, spec in _kept_specs(specs, scope).items()}
    sized = {o: buffers[s.name] for o, s in zip(_buffered(scope), specs, strict=True)}
    form.mixing = Mixing(form, kept, rows, sized)
    cutting = Cutting(scope, form.graph, form.count, form.size, rows.get("rows_video"))
    pieces: dict[fx.Node, list[fx.Node]] = {}
    for node in template.graph.nodes:
        if node.op == "placeholder":
            continue
        scope.at = node
        if node in scope.whole:
            form.mixing.over_all(node)
            continue
        if node in pairs:
            attention, pair = pairs[node]
            new = _attend(form, attention, pair, buffers, rows[f"rows_{key(attention.key_rows)}"])
            form.attentions.append(_site(new, template, node, pair))
            continue
        if not _token_wise(scope, node) or not _segments(form, cutting, node, pieces):
            change = resized(scope, node, form.count) if _token_wise(scope, node) else None
            new = form.copy(node)
            if change is not None:
                new.args = (new.args[0], *fx.node.map_arg(change, lambda a: form.built.get(a, a)))
    scope.at = None
    result = form.finish([form.mixing.leaving(o) for o in roles.outputs], form.streams(), "PartialBlock")
    _check_counts(form)
    return result


def _segments(form: BlockForm, cutting: Cutting, node: fx.Node, pieces: dict[fx.Node, list[fx.Node]]) -> bool:
    """Emits splits along the token axis and cats of its parts; False if the node is neither.

    pieces: of the splits emitted so far, which `getitem` picks from.
    """
    if node.target in SPLITS and cutting.along_tokens(node):
        pieces[node] = cutting.split(node, form.operand(node, form.scope.tensor(node)))
    elif node.target is operator.getitem and node.args[0] in pieces:
        form.built[node] = pieces[node.args[0]][node.args[1]]
    elif node.target in CATS and cutting.joins_parts(node):
        form.built[node] = cutting.cat(node, [form.operand(node, a) for a in node.args[0]])
    else:
        return False
    return True


def _token_wise(scope: Scope, node: fx.Node) -> bool:
    seen = [scope.of(a) for a in node.all_input_nodes if a in scope.labels]
    items = [x for a in node.all_input_nodes for x in scope.items.get(a, ())]
    return any(map(any_video, (*seen, *items)))


def _attend(
    form: BlockForm, attention: TokenAttention, pair: Sequence[BufferSpec], buffers: dict[str, fx.Node], rows: fx.Node
) -> fx.Node:
    """Writes the fresh keys and values into their buffers and attends to all that the buffers hold."""
    node = attention.node
    kept = [
        form.graph.call_function(
            aten.index_copy_.default, (buffers[spec.name], spec.token_axis, rows, form.operand(node, node.args[i]))
        )
        for i, spec in enumerate(pair, start=1)
    ]
    new = form.copy(node)
    new.args = (new.args[0], *kept, *new.args[3:])
    return new


def _check_counts(form: BlockForm) -> None:
    """Refuses token counts of the template that survive as anything but sizes at token axes."""
    alive = set(form.graph.nodes)
    for node in form.counts:
        if form.built[node] in alive:
            raise form.scope.refusal(next(iter(node.users), node), "uses the number of tokens as data")


def allocate_form(template: Template, roles: Roles, scope: Scope | None) -> Part:
    """Takes streams and shared values; gives zero-filled buffers of the shapes and dtypes that `full` writes."""
    form = BlockForm(template, roles, scope or Scope(template.facts))
    _values(form)
    buffers = []
    for operand in _buffered(scope) if scope is not None else ():
        fact = template.facts[operand]
        assert isinstance(fact, TensorFact)
        labels = form.scope.of(operand)
        sizes = [form.count(r) if r is not None else form.size(e) for r, e in zip(labels, fact.shape, strict=True)]
        arguments = form.built[roles.video], list(as_buffered(form.scope, operand, sizes))
        buffers.append(form.graph.call_function(aten.new_zeros.default, arguments, {"dtype": fact.dtype}))
    specs = buffer_specs(template, scope) if scope is not None else ()
    return form.finish(buffers, [Buffer(s.name) for s in specs], "AllocateBuffers")


def _buffered(scope: Scope) -> list[fx.Node]:
    """The values that have buffers, in the order of `buffer_specs`."""
    pairs = [a.node.args[1:3] for a in scope.attentions]
    return [*(o for pair in pairs for o in pair if isinstance(o, fx.Node)), *scope.kept]
