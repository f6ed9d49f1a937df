"""From a graph taken apart to an Assembled model: forms of the kinds, names of what crosses, the outer parts."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from mccompile.capture.apart import Parts, entering_again, first_rows
from mccompile.capture.axes import TokenAxes, label_kinds
from mccompile.capture.facts import ScalarFact
from mccompile.capture.forms import allocate_form, buffer_specs, full_form, partial_form, row_keys
from mccompile.capture.gather import Wanted, gather_form
from mccompile.capture.kinds import Site, TemplateKind
from mccompile.capture.part import Input, Output, Part, Shared, Stream
from mccompile.capture.projected import modulated_input
from mccompile.capture.rows import RowSpans, beside_video, key
from mccompile.capture.samples import batch_of, holds_samples
from mccompile.capture.scope import Refused, Scope
from mccompile.capture.sink import sink_gather
from mccompile.capture.split import subgraph
from mccompile.capture.stacks import PRELUDE
from mccompile.capture.streams import Roles
from mccompile.capture.types import Assembled, BlockKind, BlockSite, Port, Refusal, root_of


def _block_kind(
    kind: TemplateKind, own: Roles, scope: Scope | None, rows: RowSpans | None, refusals: list[Refusal]
) -> BlockKind:
    partial, labelled = None, scope
    if scope is not None:
        try:
            partial = partial_form(kind.template, own, scope)
            allocate_form(kind.template, own, scope)  # a buffer may be of a size that no operand has
        except Refused as refused:
            refusals.append(Refusal(refused.site, refused.reason))
            partial, scope = None, None
    return BlockKind(
        full=full_form(kind.template, own, scope),
        partial=partial,
        allocate=allocate_form(kind.template, own, scope),
        row_keys=tuple(row_keys(scope)) if scope is not None else (),
        buffers=buffer_specs(kind.template, scope) if scope is not None else (),
        modulated=modulated_input(kind.template, own, labelled, rows),
        mixing=_mixing(scope) if partial is not None and scope is not None else (),
    )


def _mixing(scope: Scope) -> tuple[Refusal, ...]:
    """What is computed over all tokens, one entry for each module and reason."""
    return tuple(dict.fromkeys(Refusal(r.site, r.reason) for r in scope.mixing.values()))


def _site(index: int, kind_index: int, kind: TemplateKind, own: Roles, site: Site) -> BlockSite:
    path = site.template.path
    made = [site.template.origin[site.nodes[o]].name if o in site.nodes else "" for o in own.outputs]
    return BlockSite(
        index=index,
        path=path,
        kind=kind_index,
        streams_in=tuple(site.captured(s).name for s in own.streams),
        streams_out=tuple(name or f"{path}.unread{i}" for i, name in enumerate(made)),
        continues=tuple(site.captured(s).name if s is not None else "" for s in own.continues),
        shared=tuple(site.captured(s).name for s in own.shared),
        weights=tuple(str(site.template.weights[site.nodes[w]].target) for w in kind.template.weights),
    )


def _sites(parts: Parts) -> tuple[BlockSite, ...]:
    of_kind = [iter(kind.sites) for kind in parts.kinds]
    return tuple(_site(i, k, parts.kinds[k], parts.roles[k], next(of_kind[k])) for i, k in enumerate(parts.kind_of))


def _crossing(parts: Parts) -> tuple[list[fx.Node], list[fx.Node]]:
    """Tensors that the postlude reads, directly or for their sizes: (of blocks, of the prelude)."""
    part, last = parts.partition.part, parts.partition.postlude
    nodes = parts.exported.module.graph.nodes
    todo = [n for n in nodes if n.op == "output" or part.get(n) == last]
    seen = set(todo)
    found: list[fx.Node] = []
    while todo:
        for used in todo.pop(0).all_input_nodes:
            if used in seen or used.op in ("get_attr", "placeholder"):
                continue
            seen.add(used)
            if isinstance(parts.facts[used], ScalarFact):
                todo.append(used)
            elif part[used] < last:
                found.append(used)
    return [n for n in found if part[n] > PRELUDE], [n for n in found if part[n] == PRELUDE]


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the values that cross from part to part, in the order of CapturedModel."""

    entry: list[str]
    exit: list[str]
    shared: list[str]
    gathered: list[str]
    streams: list[str]


def _names(parts: Parts, sites: Sequence[BlockSite]) -> _Names:
    leaving, closing = _crossing(parts)
    made = {name for s in sites for name in s.streams_out}
    streams = list(dict.fromkeys(name for s in sites for name in (*s.streams_in, *s.streams_out)))
    gathered = list(dict.fromkeys(name for s in sites for name in s.shared))
    return _Names(
        entry=[name for name in streams if name not in made],
        exit=sorted((n.name for n in leaving), key=streams.index),
        shared=list(dict.fromkeys([*gathered, *(n.name for n in closing)])),
        gathered=gathered,
        streams=streams,
    )


def _unrowed(parts: Parts, axes: TokenAxes, names: _Names) -> set[str]:
    """The streams without rows of tokens."""
    return {port.name for port in _ports(parts, axes, names.streams) if port.token_axis is None}


def _of_known_sizes(
    kinds: tuple[BlockKind, ...], sites: Sequence[BlockSite], names: _Names, unrowed: Container[str],
    refusals: list[Refusal],
) -> tuple[BlockKind, ...]:  # fmt: skip
    """Without the partial forms whose buffers are as large as a stream that no stream before the blocks is as large as.

    Buffers are made before the blocks run.
    """
    found = list(kinds)
    for site in sites:
        kind = found[site.kind]
        streams = dict(zip((o for o in kind.allocate.takes if isinstance(o, Stream)), site.streams_in, strict=True))
        read = (streams[o] for o, node in kind.allocate.holders().items() if isinstance(o, Stream) and node.users)
        odd = next((n for n in read if n in unrowed and root_of(sites, n, names.entry) not in names.entry), None)
        if kind.partial is not None and odd is not None:
            reason = f"its keys are as many as the rows of `{odd}`, whose number is known when a block has made it"
            refusals.append(Refusal(site.path, reason))
            found[site.kind] = replace(kind, partial=None)
    return tuple(found)


def _numbers(parts: Parts) -> list[fx.Node]:
    """Scalars that the prelude computes."""
    found = (n for n, own in parts.partition.part.items() if own == PRELUDE and n.op == "call_function")
    return [n for n in found if isinstance(parts.facts[n], ScalarFact)]


def _gather(
    parts: Parts, axes: TokenAxes, names: Sequence[str], keys: Sequence[RowSpans]
) -> tuple[Part, tuple[Port, ...]]:
    """The gather part over these shared values, and its sources. Raises Refused."""
    nodes = {n.name: n for n in parts.exported.module.graph.nodes}
    numbers = _numbers(parts)
    wanted = []
    for name in names:
        axis, rows = axes.of(nodes[name])
        sunk = sink_gather(parts.facts, numbers, nodes[name], axis) if axis is not None else None
        wanted.append(Wanted(nodes[name], axis, rows, sunk))
    device = next(x.device for x in parts.exported.probe if isinstance(x, torch.Tensor))
    module, sources = gather_form(parts.facts, wanted, keys, numbers, device)
    ports = {n: _port(parts, n, None, None) for n in sources}
    for want in wanted:
        if want.sunk is None:
            ports[want.value] = _port(parts, want.value, want.axis, want.rows)
        else:  # its rows are frames, or other parts of the grid
            leaf, name = want.sunk.leaf, "part" if want.sunk.index.modulo else "frame"
            ports[leaf] = replace(_port(parts, leaf, want.sunk.axis, None), rows=name)
    return module, tuple(ports.values())


def _port(parts: Parts, value: fx.Node, axis: int | None, rows: RowSpans | None) -> Port:
    name = key(rows) if rows is not None else ""
    beside = beside_video(rows) if rows is not None else None
    return Port(value.name, axis, name, parts.depends[value], batch_of(value, parts.facts), beside)


def _ports(
    parts: Parts, axes: TokenAxes, names: Sequence[str], sites: Sequence[BlockSite] = ()
) -> tuple[Port, ...]:
    nodes = {n.name: n for n in parts.exported.module.graph.nodes}
    unread = _unread(sites, nodes)

    def port(name: str) -> Port:
        if name in nodes:
            axis, rows = axes.of(nodes[name])
            return _port(parts, nodes[name], axis, rows)
        if name not in unread:
            return Port(name, None, "", frozenset())
        axis, rows = axes.of(nodes[unread[name]])
        return replace(_port(parts, nodes[unread[name]], axis, rows), name=name, depends=frozenset())

    return tuple(port(name) for name in names)


def _unread(sites: Sequence[BlockSite], nodes: Mapping[str, fx.Node]) -> dict[str, str]:
    """For each output of a block that nothing reads, the same output of a block of its kind that is read."""
    found: dict[str, str] = {}
    for site in sites:
        alike = [s.streams_out for s in sites if s.kind == site.kind]
        for place, name in enumerate(site.streams_out):
            read = next((outs[place] for outs in alike if outs[place] in nodes), None)
            if name not in nodes and read is not None:
                found[name] = read
    return found


def _row_vectors(axes: TokenAxes, kinds: Sequence[BlockKind], streams: Sequence[fx.Node]) -> dict[str, RowSpans]:
    """What gather returns behind the rows: positions along the axes of keys, and of streams that hold text too."""
    found: dict[str, RowSpans] = {}
    for scope, kind in zip(axes.scopes, kinds, strict=True):
        if scope is not None and kind.partial is not None:
            found |= row_keys(scope)
    for stream in streams:
        rows = axes.of(stream)[1]
        if rows is not None and key(rows) != "video":
            found[key(rows)] = rows
    return found


def assemble(parts: Parts, model_class: str) -> Assembled:
    """Derives every form and names what crosses. `prove` makes a CapturedModel of the result."""
    rows = first_rows(parts)
    axes = label_kinds(list(parts.kinds), list(parts.roles), rows, entering_again(parts, rows))
    refusals = axes.refusals
    together = zip(parts.kinds, parts.roles, axes.scopes, strict=True)
    kinds = tuple(_block_kind(k, r, s, axes.of(k.sites[0].captured(r.video))[1], refusals) for k, r, s in together)
    sites = _sites(parts)
    names = _names(parts, sites)
    kinds = _of_known_sizes(kinds, sites, names, _unrowed(parts, axes, names), refusals)
    module = parts.exported.module
    nodes = {n.name: n for n in module.graph.nodes}
    keys = _row_vectors(axes, kinds, [nodes[name] for name in names.streams if name in nodes])
    gather, sources = None, tuple[Port, ...]()
    if any(k.partial is not None for k in kinds):
        try:
            gather, sources = _gather(parts, axes, names.gathered, list(keys.values()))
        except Refused as refused:
            refusals.append(Refusal(refused.site, refused.reason))
    placeholders = module.graph.find_nodes(op="placeholder")
    given = list(zip(placeholders, parts.exported.probe, parts.exported.dynamic, strict=True))
    inputs = [n for n, _, dynamic in given if dynamic]
    told = tuple(Input(n.name) for n in inputs)
    (results,) = module.graph.output_node().args
    written = module.graph._codegen.pytree_info
    assert isinstance(results, list | tuple)
    return Assembled(
        module=module,
        model_class=model_class,
        inputs=tuple(n.name for n in inputs),
        constants=tuple((n.name, x) for n, x, dynamic in given if not dynamic),
        in_spec=written.in_spec,
        out_spec=written.out_spec,
        prelude=Part(
            subgraph(module, inputs, [nodes[n] for n in (*names.entry, *names.shared)], "Prelude"),
            takes=told, gives=(*map(Stream, names.entry), *map(Shared, names.shared)),
        ),
        gather=gather,
        postlude=Part(
            subgraph(module, [*(nodes[n] for n in (*names.exit, *names.shared)), *inputs], results, "Postlude"),
            takes=(*map(Stream, names.exit), *map(Shared, names.shared), *told),
            gives=tuple(Output(i) for i in range(len(results))),
        ),
        entry=tuple(names.entry),
        exit=tuple(names.exit),
        shared=_ports(parts, axes, names.shared),
        sources=sources,
        gathered=tuple(names.gathered),
        streams=_ports(parts, axes, names.streams, sites),
        row_keys=tuple(keys),
        kinds=kinds,
        blocks=sites,
        refusals=tuple(refusals),
        samples=tuple(n.name for n in inputs if holds_samples(n, parts.facts)),
        opaque="",
    )
