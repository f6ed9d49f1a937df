"""The roles of a block's operands: streams flow from block to block, shared values come from the prelude.

An operand is a stream if an earlier block makes it at some site of its kind, or if an output is this operand plus
something (`x + f(x)`). The k-th output continues the k-th stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from mccompile.capture.errors import NoBlocksError
from mccompile.capture.facts import Extent, ScalarFact, TensorFact, is_dynamic
from mccompile.capture.kinds import TemplateKind
from mccompile.capture.template import Template

aten = torch.ops.aten
_TRUNK = frozenset((aten.add.Tensor, aten.sub.Tensor, aten.to.dtype, aten.clone.default, aten.contiguous.default))


@dataclass(frozen=True, slots=True)
class Roles:
    """Of one kind, as nodes of its template. `video` is the stream of the latent, its axis carries the tokens.

    The axis is None where the stream changes its size along several axes (frames and places kept apart).
    """

    streams: tuple[fx.Node, ...]
    shared: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    continues: tuple[fx.Node | None, ...]  # for each output the stream that it is, later on; None where it is another
    video: fx.Node
    video_axis: int | None


def _trunk(output: fx.Node) -> Iterator[fx.Node]:
    """Placeholders that reach `output` through additions only, the shortest way first."""
    seen, todo = {output}, [output]
    while todo:
        node = todo.pop(0)
        if node.op == "placeholder":
            yield node
        elif node.target in _TRUNK or node is output:
            fresh = [a for a in node.all_input_nodes if a not in seen]
            seen.update(fresh)
            todo.extend(fresh)


def _paired(
    template: Template, streams: list[fx.Node], outputs: list[fx.Node]
) -> list[tuple[fx.Node | None, fx.Node]]:
    """(stream, output that continues it) in the order of the streams, then the outputs that continue none."""
    left, ordered = list(outputs), list[tuple[fx.Node | None, fx.Node]]()
    for stream in streams:
        fact = template.facts[stream]
        alike = [o for o in left if template.facts[o] == fact]
        match = next((o for o in alike if stream in set(_trunk(o))), alike[0] if alike else None)
        if match is not None:
            left.remove(match)
            ordered.append((stream, match))
    return [*ordered, *((None, output) for output in left)]


def token_axis(fact: TensorFact, samples: Extent | None = None) -> int | None:
    """The one axis that differs between the probes, the first one aside; None if there is no such axis.

    samples: the number of samples at both probes, where it differs: it must be in front, where a run looks for it.
    """
    axes = [i for i, e in enumerate(fact.shape) if is_dynamic(e)]
    if len(axes) == 2 and axes[0] == 0 and fact.shape[axes[1]] != samples:
        axes = axes[1:]
    return axes[0] if len(axes) == 1 and axes[0] > 0 else None


def roles(
    kind: TemplateKind, made_by_blocks: set[fx.Node], carries_latent: set[fx.Node], samples: Extent | None = None
) -> Roles:
    """Roles of a kind's operands and outputs.

    made_by_blocks: captured values that some block makes; carries_latent: captured values that depend on the
    latent's data; samples: as for `token_axis`. Raises NoBlocksError (MC0403) where no stream does.
    """
    template = kind.template
    outputs = [n for n in template.graph.nodes if any(s.nodes.get(n) in s.template.outputs for s in kind.sites)]
    grown = {p for o in outputs for p in _trunk(o) if template.facts[p] == template.facts[o]}
    streams = []
    for placeholder in template.values:
        captured = [site.captured(placeholder) for site in kind.sites]
        if isinstance(template.facts[placeholder], ScalarFact):
            continue
        if placeholder in grown or any(c in made_by_blocks for c in captured):
            streams.append(placeholder)
    video = _video(template, streams, carries_latent)
    streams.sort(key=lambda s: s is not video)
    fact = template.facts[video]
    axis = token_axis(fact, samples) if isinstance(fact, TensorFact) else None
    pairs = _paired(template, streams, outputs)
    lasting = {s for s, _ in pairs}
    lasting |= {p for p in streams if any(site.captured(p) in made_by_blocks for site in kind.sites)}
    streams = [s for s in streams if s is video or s in lasting]  # what is added and not continued is no stream
    shared = tuple(p for p in template.values if p not in streams)
    made, continues = tuple(output for _, output in pairs), tuple(stream for stream, _ in pairs)
    return Roles(tuple(streams), shared, made, continues, video, axis)


def _video(template: Template, streams: list[fx.Node], carries_latent: set[fx.Node]) -> fx.Node:
    """The stream of the latent: of those that depend on its data, the largest."""

    def rows(stream: fx.Node) -> int:
        fact = template.facts[stream]
        return prod(e[0] for e in fact.shape if is_dynamic(e)) if isinstance(fact, TensorFact) else 0

    found = [s for s in streams if template.values[s] in carries_latent]
    if not found:
        raise NoBlocksError(
            template.path,
            "no value that flows through the block depends on the latent",
            "the blocks of the list must pass the latent's tokens on to each other",
        )
    return max(found, key=rows)
