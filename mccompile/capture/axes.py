"""Labels all kinds of blocks together. What the rule of one block demands of a shared value holds for every block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from mccompile.capture.facts import Extent, TensorFact
from mccompile.capture.kinds import TemplateKind
from mccompile.capture.labels import label
from mccompile.capture.rows import Labels, RowSpans, has_video
from mccompile.capture.scope import Demand, Refused, Scope
from mccompile.capture.streams import Roles
from mccompile.capture.types import Refusal


@dataclass(slots=True)
class TokenAxes:
    """`known`: rows of axes, by captured value. `scopes`: labels per kind, None where it was refused."""

    known: dict[fx.Node, dict[int, RowSpans]] = field(default_factory=dict)
    scopes: list[Scope | None] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def of(self, value: fx.Node) -> tuple[int | None, RowSpans | None]:
        """(axis, rows) of a captured value that carries video tokens."""
        for axis, rows in self.known.get(value, {}).items():
            if has_video(rows):
                return axis, rows
        return None, None


def label_kinds(
    kinds: list[TemplateKind], roles: list[Roles], rows: RowSpans | None, again: Mapping[fx.Node, int]
) -> TokenAxes:
    """Labels every kind. Labelling starts at the video stream of the first block, whose token axis holds `rows`.

    Without one token axis (`rows` None) every kind is refused. again: other values that enter with the same rows, each
    with its token axis. They are taken for such where no more kinds are refused then.
    """
    found = _labelled(kinds, roles, rows, again)
    if not again or None not in found.scopes:
        return found
    alone = _labelled(kinds, roles, rows, {})
    return alone if alone.scopes.count(None) < found.scopes.count(None) else found


def _labelled(
    kinds: list[TemplateKind], roles: list[Roles], rows: RowSpans | None, again: Mapping[fx.Node, int]
) -> TokenAxes:
    if rows is None or roles[0].video_axis is None:
        reason = f"`{roles[0].video.name}`, which enters the first block, has no single token axis"
        return TokenAxes(scopes=[None] * len(kinds), refusals=[Refusal(kinds[0].template.path, reason)])
    video = kinds[0].sites[0].captured(roles[0].video)
    known = {**{stream: {axis: rows} for stream, axis in again.items()}, video: {roles[0].video_axis: rows}}
    shared = {s: dict(a) for s, a in known.items()}
    while True:
        axes = TokenAxes({s: dict(a) for s, a in shared.items()})
        try:
            for kind, role in zip(kinds, roles, strict=True):
                axes.scopes.append(_label_kind(axes, kind, role))
            _check_masks(axes, kinds)
            _check_streams(axes, kinds, roles)
            return axes
        except _SharedDemand as demand:
            for value, axis, rows in demand.wanted:
                shared.setdefault(value, {})[axis] = rows


class _SharedDemand(Exception):
    """Values from the prelude that turned out to carry rows."""

    def __init__(self, wanted: list[tuple[fx.Node, int, RowSpans]]) -> None:
        super().__init__(len(wanted))
        self.wanted = wanted


def _label_kind(axes: TokenAxes, kind: TemplateKind, roles: Roles) -> Scope | None:
    seeds = {p: axes.known.get(kind.sites[0].captured(p), {}) for p in kind.template.values}
    scope: Scope | None = None
    try:
        scope = label(kind.template, seeds, _samples(kind, roles))
        _check_operands(scope, kind)
        _note_ends(scope, kind, roles)
    except Demand as demand:
        values = [site.captured(demand.placeholder) for site in kind.sites]
        if demand.placeholder in roles.streams or any(demand.axis in axes.known.get(v, {}) for v in values):
            site, reason = demand.placeholder.name, "a value between blocks has no rows of its own"
            axes.refusals.append(Refusal(site, reason))
        else:
            raise _SharedDemand([(v, demand.axis, demand.rows) for v in values]) from None
    except Refused as refused:
        scope = None
        axes.refusals.append(Refusal(refused.site, refused.reason))
    for site in kind.sites:
        for output, labels in _output_labels(axes, kind, roles, scope):
            if output in site.nodes:
                value = site.template.origin[site.nodes[output]]
                axes.known[value] = {i: rows for i, rows in enumerate(labels) if rows is not None}
    return scope


def _samples(kind: TemplateKind, roles: Roles) -> Extent:
    """The sizes of the first axis of the video stream."""
    fact = kind.template.facts[roles.video]
    return fact.shape[0] if isinstance(fact, TensorFact) and fact.shape else (1, 1)


def _note_ends(scope: Scope, kind: TemplateKind, roles: Roles) -> None:
    """Lets a value of all tokens that continues a stream of rows leave the block as rows."""
    for output, stream in zip(roles.outputs, roles.continues, strict=True):
        if stream is None or output not in scope.whole or kind.template.facts[stream] != kind.template.facts[output]:
            continue
        axes = [(axis, rows) for axis, rows in enumerate(scope.of(stream)) if rows is not None]
        if len(axes) == 1:
            scope.ends[output] = axes[0]


def _check_masks(axes: TokenAxes, kinds: list[TemplateKind]) -> None:
    """Refuses kinds that mix tokens in a model whose masks hide tokens: what is hidden may be left out there."""
    masked = any(scope is not None and scope.masks for scope in axes.scopes)
    for i, scope in enumerate(axes.scopes):
        if scope is not None and masked and scope.mixing:
            refused = next(iter(scope.mixing.values()))
            axes.refusals.append(Refusal(refused.site, refused.reason))
            axes.scopes[i] = None


def _check_operands(scope: Scope, kind: TemplateKind) -> None:
    for placeholder in kind.template.values:
        if sum(has_video(rows) for rows in scope.labels.get(placeholder, ())) > 1:
            raise Refused(kind.template.path, f"`{placeholder.name}` has two token axes")


def _output_labels(
    axes: TokenAxes, kind: TemplateKind, roles: Roles, scope: Scope | None
) -> Iterator[tuple[fx.Node, Labels]]:
    """The labels of the outputs. The outputs of a refused kind keep the rows of the stream that they continue."""
    for i, output in enumerate(roles.outputs):
        if scope is not None:
            yield output, scope.of(output)
        elif i < len(roles.streams):
            stream = roles.streams[i]
            alike = kind.template.facts[stream] == kind.template.facts[output]
            known = axes.known.get(kind.sites[0].captured(stream), {}) if alike else {}
            rank = max(known, default=-1) + 1
            yield output, tuple(known.get(a) for a in range(rank))


def _check_streams(axes: TokenAxes, kinds: list[TemplateKind], roles: list[Roles]) -> None:
    """Refuses a kind whose streams carry other rows at a later site than at its first."""
    for i, (kind, role) in enumerate(zip(kinds, roles, strict=True)):
        scope = axes.scopes[i]
        if scope is None:
            continue
        for site in kind.sites:
            for stream in role.streams:
                known = axes.known.get(site.captured(stream), {})
                expected = scope.of(stream)
                if tuple(known.get(a) for a in range(len(expected))) != expected:
                    reason = f"`{stream.name}` does not carry the rows it should"
                    axes.refusals.append(Refusal(site.template.path, reason))
                    axes.scopes[i] = None
