"""A normalised graph taken apart, and which of its streams enter the blocks with the tokens of the latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from mccompile.capture.export import Exported
from mccompile.capture.facts import Facts, TensorFact
from mccompile.capture.grid import Embedding, latent_range, touched
from mccompile.capture.kinds import TemplateKind
from mccompile.capture.rows import RowSpans, joined, other, total, video
from mccompile.capture.split import subgraph
from mccompile.capture.stacks import PRELUDE, Partition
from mccompile.capture.streams import Roles, token_axis
from mccompile.capture.template import Template


@dataclass(frozen=True, slots=True)
class Parts:
    """A normalised graph taken apart."""

    exported: Exported
    facts: Facts
    depends: Mapping[fx.Node, frozenset[str]]
    partition: Partition
    templates: tuple[Template, ...]
    kinds: tuple[TemplateKind, ...]
    kind_of: tuple[int, ...]
    roles: tuple[Roles, ...]


def first_rows(parts: Parts) -> RowSpans | None:
    """Rows of the first stream: the tokens that the latent reaches, and others in front or behind.

    None where the stream has no single token axis.
    """
    role, kind = parts.roles[0], parts.kinds[0]
    stream, axis = kind.sites[0].captured(role.video), role.video_axis
    if axis is None:
        return None
    one, two = (latent_range(embedding) for embedding in _embeddings(parts, stream, axis))
    fact = parts.facts[stream]
    assert isinstance(fact, TensorFact)
    size = fact.shape[axis]
    tokens = one[1] - one[0], two[1] - two[0]
    behind = size[0] - one[1], size[1] - two[1]
    return joined([other((one[0], two[0])), (video(tokens),), other(behind)])


def entering_again(parts: Parts, rows: RowSpans | None) -> dict[fx.Node, int]:
    """Values of the prelude that a block takes beside the first stream, with its tokens; each with its token axis.

    A decoder may begin with the embedded latent anew. A value is one where every slice of the latent that is tried
    reaches the same rows of both, at both calls. rows: of the first stream, which holds nothing but the tokens.
    """
    role, first = parts.roles[0], parts.kinds[0].sites[0].captured(parts.roles[0].video)
    if rows is None or role.video_axis is None or len(rows) != 1 or not rows[0].video:
        return {}
    found: dict[fx.Node, int] = {}
    for kind, own in zip(parts.kinds, parts.roles, strict=True):
        for value in (site.captured(v) for site in kind.sites for v in (*own.streams, *own.shared)):
            fact = parts.facts[value]
            if value is first or value in found or parts.partition.part.get(value) != PRELUDE:
                continue
            if parts.exported.source not in parts.depends[value] or not isinstance(fact, TensorFact):
                continue
            axis = token_axis(fact)
            if axis is None or fact.shape[axis] != total(rows):
                continue
            if _alike(parts, first, role.video_axis, value, axis):
                found[value] = axis
    return found


def _alike(parts: Parts, first: fx.Node, first_axis: int, value: fx.Node, axis: int) -> bool:
    """Whether every slice of the latent that is tried reaches the same rows of two streams."""
    pairs = zip(_embeddings(parts, first, first_axis), _embeddings(parts, value, axis), strict=True)
    for one, two in pairs:
        bases = one.run(one.latent), two.run(two.latent)
        shape = one.latent.shape
        for along, place in ((a, p) for a in range(1, len(shape)) for p in sorted({0, shape[a] // 2, shape[a] - 1})):
            if not torch.equal(touched(one, bases[0], along, place), touched(two, bases[1], along, place)):
                return False
    return True


def _embeddings(parts: Parts, stream: fx.Node, axis: int) -> tuple[Embedding, Embedding]:
    """A stream of the prelude as a function of the latent, at both calls."""
    module = parts.exported.module
    placeholders = module.graph.find_nodes(op="placeholder")
    position = next(i for i, n in enumerate(placeholders) if n.name == parts.exported.source)
    embed = subgraph(module, placeholders, [stream], "Embedding")
    one, two = (Embedding(embed, inputs, position, axis) for inputs in (parts.exported.probe, parts.exported.second))
    return one, two
