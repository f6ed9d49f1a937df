"""Finds shared values whose rows are picked from a smaller value, so that blocks can pick them for themselves.

Three things rule a value out. Its rows are not picked from a smaller value alone. Or blocks of one kind read different
values at its place. Or the first axis of the source, the batch, does not stay the first axis all along, although blocks
may be given a single sample of it. The passes expose_picks and pick_inside use what is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from mccompile.capture.part import Shared
from mccompile.capture.types import BlockSite, CapturedModel, Port, SampleCount

aten = torch.ops.aten
SIZED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)
_ALONG = (aten.contiguous.default, aten.clone.default, aten.to.dtype, aten._to_copy.default)
_ON_AXES = (
    aten.unflatten.int, aten.flatten.using_ints, aten.transpose.int, aten.unsqueeze.default, aten.squeeze.dim,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Coarse:
    """A shared value whose rows are picked from a smaller one. chain: the operators from the pick to the rows."""

    name: str
    source: str
    pick: fx.Node  # index_select(source, axis, index)
    chain: tuple[fx.Node, ...]

    @property
    def index(self) -> fx.Node:
        """The row of the source for each selected token."""
        index = self.pick.args[2]
        assert isinstance(index, fx.Node)
        return index


def find_coarse(captured: CapturedModel) -> tuple[Coarse, ...]:
    """Returns the shared values of `captured` that blocks can pick for themselves."""
    if captured.gather is None:
        return ()
    sources = {p.name: p for p in captured.sources}
    results = {r.name: v for r, v in captured.gather.results().items() if isinstance(r, Shared)}
    found = (_coarse(name, value, sources) for name, value in results.items() if isinstance(value, fx.Node))
    return tuple(c for c in found if c is not None and _everywhere(c.name, captured.blocks))


def _coarse(name: str, result: fx.Node, sources: Mapping[str, Port]) -> Coarse | None:
    chain: list[fx.Node] = []
    at = result
    while at.target is not aten.index_select.default:
        if at.op != "call_function" or not at.args or not isinstance(at.args[0], fx.Node):
            return None
        chain.append(at)
        at = at.args[0]
    source, axis, index = at.args
    assert isinstance(source, fx.Node)
    assert isinstance(index, fx.Node)
    if axis == 0 or not all(_keeps_batch(n, sources) for n in chain):
        return None
    if source.name not in sources or index.target not in (aten.floor_divide.default, aten.remainder.Scalar):
        return None
    inside = {at, *chain}
    others = [n for c in chain for n in c.all_input_nodes if n not in inside and not _is_batch(n, sources)]
    if not all(n.target is aten.sym_size.int and n.args[1] == 0 and _counts_rows(n.args[0], index) for n in others):
        return None
    return Coarse(name, source.name, at, tuple(reversed(chain)))


def _keeps_batch(node: fx.Node, sources: Mapping[str, Port]) -> bool:
    """Says whether an operator leaves the first axis as it is, at any size."""
    if node.target in SIZED:
        sizes = node.args[1]
        if not isinstance(sizes, list | tuple) or any(_is_batch(s, sources) for s in sizes[1:]):
            return False
        return _is_batch(sizes[0], sources) or (isinstance(sizes[0], int) and sizes[0] != -1)
    if node.target is aten.repeat.default:
        return isinstance(node.args[1], list | tuple) and node.args[1][0] == 1
    if node.target in _ON_AXES:
        axes = [a for a in node.args[1:] if isinstance(a, int)]
        return bool(axes) and all(a > 0 or a == -1 for a in axes)
    return node.target in _ALONG


def _is_batch(value: object, sources: Mapping[str, Port]) -> bool:
    """Says whether a value of the gather is the number of samples."""
    port = sources.get(value.name) if isinstance(value, fx.Node) and value.op == "placeholder" else None
    return port is not None and port.token_axis is None and port.batch == SampleCount()


def _counts_rows(positions: object, index: fx.Node) -> bool:
    """Says whether `index` is made from this vector entry by entry, so that both have equally many entries."""
    at: object = index
    while isinstance(at, fx.Node):
        if at is positions:
            return True
        at = at.args[0] if at.op == "call_function" and at.target is not aten.cat.default else None
    return False


def _everywhere(name: str, sites: Sequence[BlockSite]) -> bool:
    """Says whether all blocks of one kind that read the value read it at the same places."""
    places: dict[int, set[tuple[int, ...]]] = {}
    for site in sites:
        places.setdefault(site.kind, set()).add(tuple(i for i, s in enumerate(site.shared) if s == name))
    return all(len(found) == 1 for found in places.values())
