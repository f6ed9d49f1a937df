"""From a model and two recorded calls to a CapturedModel: the order of the passes, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import torch
from torch import fx, nn

from mccompile.capture.axes import TokenAxes, captured_operand, correspond, label_kinds
from mccompile.capture.dependence import data_inputs, flow_graph
from mccompile.capture.export import Exported, export_model
from mccompile.capture.facts import Extent, Facts, ScalarFact, TensorFact, measure
from mccompile.capture.forms import allocate_form, buffer_specs, full_form, partial_form, row_keys
from mccompile.capture.gather import Source, gather_form
from mccompile.capture.kinds import Kind, group
from mccompile.capture.normalise import drop_checks, normalise
from mccompile.capture.rows import Rows, key
from mccompile.capture.scope import Refused, Scope
from mccompile.capture.split import subgraph
from mccompile.capture.stacks import PRELUDE, Partition, partition
from mccompile.capture.streams import Roles, roles
from mccompile.capture.template import Template, cut
from mccompile.capture.types import BlockKind, BlockSite, CapturedModel, Port, Refusal


@dataclass(frozen=True, slots=True)
class _Cut:
    """A normalised graph taken apart; everything that the last step assembles."""

    exported: Exported
    facts: Facts
    depends: Mapping[fx.Node, frozenset[str]]
    parts: Partition
    templates: tuple[Template, ...]
    kinds: tuple[Kind, ...]
    kind_of: tuple[int, ...]
    roles: tuple[Roles, ...]


def capture(model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]) -> CapturedModel:
    """Captures a model from two recorded calls of its forward at two sizes.

    probe, second: keyword arguments of `model.forward`. Sizes that differ are dynamic, all else is constant.
    Raises CaptureError (MC04xx); what cannot be proved about rows is a Refusal of the result, never an error.
    """
    exported = export_model(model, probe, second)
    drop_checks(exported.module)
    facts = measure(exported.module, exported.probe, exported.second)
    normalise(exported.module, facts)
    return _assemble(_take_apart(exported, facts), type(model).__name__)


def _take_apart(exported: Exported, facts: Facts) -> _Cut:
    graph = exported.module.graph
    flow = flow_graph(graph)
    depends = data_inputs(graph, flow, facts)
    parts = partition(graph, flow, facts, depends, exported.source)
    templates = [_template(flow, facts, parts, i) for i in range(len(parts.paths))]
    kinds, kind_of = group(templates)
    by_blocks = {n for n, own in parts.part.items() if own > PRELUDE}
    latent = {n for n, names in depends.items() if exported.source in names}
    found = tuple(roles(kind, by_blocks, latent) for kind in kinds)
    return _Cut(exported, facts, depends, parts, tuple(templates), tuple(kinds), tuple(kind_of), found)


def _template(flow: nx.DiGraph, facts: Facts, parts: Partition, index: int) -> Template:
    nodes = [n for n in flow.nodes if parts.part.get(n) == index]
    last = parts.postlude
    read_later = {
        n for n in nodes for u in n.users if parts.part.get(u, last) > index and not isinstance(facts[n], ScalarFact)
    }
    return cut(parts.paths[index], nodes, set(nodes), read_later, facts)


def _tokens(found: _Cut) -> Extent:
    fact = found.kinds[0].template.facts[found.roles[0].video]
    assert isinstance(fact, TensorFact)
    return fact.shape[found.roles[0].video_axis]


def _block_kind(kind: Kind, own: Roles, scope: Scope | None, refusals: list[Refusal]) -> BlockKind:
    partial = None
    if scope is not None:
        try:
            partial = partial_form(kind.template, own, scope)
        except Refused as refused:
            refusals.append(Refusal(refused.site, refused.reason))
            scope = None
    return BlockKind(
        full=full_form(kind.template, own, scope),
        partial=partial,
        allocate=allocate_form(kind.template, own, scope),
        row_keys=tuple(row_keys(scope)) if scope is not None else (),
        buffers=buffer_specs(kind.template, scope) if scope is not None else (),
    )


def _sites(found: _Cut) -> tuple[BlockSite, ...]:
    sites = []
    for i, site in enumerate(found.templates):
        kind, own = found.kinds[found.kind_of[i]], found.roles[found.kind_of[i]]
        nodes = correspond(kind, site)
        sites.append(
            BlockSite(
                index=i,
                path=site.path,
                kind=found.kind_of[i],
                streams_in=tuple(site.values[nodes[s]].name for s in own.streams),
                streams_out=tuple(site.origin[nodes[o]].name for o in own.outputs),
                shared=tuple(site.values[nodes[s]].name for s in own.shared),
                weights=tuple(str(site.weights[nodes[w]].target) for w in kind.template.weights),
            )
        )
    return tuple(sites)


def _closing_values(found: _Cut) -> list[fx.Node]:
    """Prelude tensors that the postlude reads, directly or for their sizes."""
    part, closing = found.parts.part, dict[fx.Node, None]()
    todo = [n for n in found.exported.module.graph.nodes if part.get(n, found.parts.postlude) == found.parts.postlude]
    todo = [n for n in todo if n.op != "get_attr"]
    seen = set(todo)
    while todo:
        for used in todo.pop(0).all_input_nodes:
            if used in seen or part.get(used) != PRELUDE or used.op == "placeholder":
                continue
            seen.add(used)
            if isinstance(found.facts[used], ScalarFact):
                todo.append(used)
            else:
                closing[used] = None
    return list(closing)


def _assemble(found: _Cut, model_class: str) -> CapturedModel:
    axes = label_kinds(list(found.kinds), list(found.roles), _tokens(found))
    refusals = axes.refusals
    kinds = tuple(_block_kind(*x, refusals) for x in zip(found.kinds, found.roles, axes.scopes, strict=True))
    sites = _sites(found)
    module, part = found.exported.module, found.parts.part
    by_name = {n.name: n for n in module.graph.nodes}
    made = {name for s in sites for name in s.streams_out}
    streams = list(dict.fromkeys(name for s in sites for name in (*s.streams_in, *s.streams_out)))
    entry = [name for name in streams if name not in made]
    read_by_blocks = list(dict.fromkeys(name for s in sites for name in s.shared))
    shared = list(dict.fromkeys([*read_by_blocks, *(n.name for n in _closing_values(found))]))
    leaving = [
        n.name
        for n in module.graph.nodes
        if PRELUDE < part.get(n, PRELUDE) < found.parts.postlude
        and any(part.get(u, found.parts.postlude) == found.parts.postlude for u in n.users)
    ]
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    inputs = [n for n, dynamic in zip(placeholders, found.exported.dynamic, strict=True) if dynamic]
    constants = [
        (n.name, x)
        for n, x, dynamic in zip(placeholders, found.exported.probe, found.exported.dynamic, strict=True)
        if not dynamic
    ]
    output = next(n for n in module.graph.nodes if n.op == "output")
    flat = [r for r in output.args[0] if isinstance(r, fx.Node)]

    def port(name: str) -> Port:
        axis, rows = axes.of(by_name[name])
        return Port(name, axis, key(rows) if rows is not None else "", found.depends[by_name[name]])

    gathered = [name for name in read_by_blocks]
    sources = [Source(by_name[name], *axes.of(by_name[name])) for name in gathered]
    keys: dict[str, Rows] = {}
    for scope, kind in zip(axes.scopes, kinds, strict=True):
        if scope is not None and kind.partial is not None:
            keys |= row_keys(scope)
    gather = None
    if any(k.partial is not None for k in kinds):
        try:
            gather = gather_form(found.facts, sources, list(keys.values()), _device(found.exported.probe))
        except Refused as refused:
            refusals.append(Refusal(refused.site, refused.reason))
    values = [by_name[name] for name in (*entry, *shared)]
    ending = [by_name[name] for name in (*leaving, *shared)]
    return CapturedModel(
        module=module,
        model_class=model_class,
        inputs=tuple(n.name for n in inputs),
        constants=tuple(constants),
        in_spec=module._in_spec,
        out_spec=module._out_spec,
        prelude=subgraph(module, inputs, values, "Prelude"),
        gather=gather,
        postlude=subgraph(module, [*ending, *inputs], flat, "Postlude"),
        entry=tuple(entry),
        exit=tuple(leaving),
        shared=tuple(port(name) for name in shared),
        sources=tuple(port(s.value.name) for s in sources),
        gathered=tuple(gathered),
        streams=tuple(port(name) for name in streams),
        row_keys=tuple(keys),
        kinds=kinds,
        blocks=sites,
        grid=None,
        refusals=tuple(refusals),
    )


def _device(inputs: Sequence[object]) -> torch.device:
    return next(x.device for x in inputs if isinstance(x, torch.Tensor))
