"""Splits the blocks of a captured model at their sublayers, where a policy decides about those apart.

before: block i: x0 -> attn, cross, ffn -> x3;  the policy keeps the residual of `blocks[*].attn`
after:  two blocks in its place: x0 -> attn -> x1, and x1 -> cross, ffn -> x3
before: the same block;  rules look at `blocks[14].attn.residual`
after:  two blocks, as above, of one region
before: the same block;  the policy keeps the output of `blocks[*].attn`
after:  two blocks: x0 -> attn -> y, and x0, y -> x1 = x0 + gate * y, cross, ffn -> x3
refuses when: a block cannot be cut (sublayers.py), the model has no such block or sublayer, or its two forms are cut
              at different places

Nothing else changes: every operator of a block is in one of its pieces, with the same operands. What a block computes
of shared values and weights alone is computed in each piece that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import fx

from mccompile import ir
from mccompile.capture.part import Buffer, Operand, Part, Positions, Shared, Stream, Weight
from mccompile.capture.types import BlockKind, BlockSite, BufferSpec, CapturedModel, ModulatedInput, names_at
from mccompile.language.depth import block_bounds
from mccompile.language.walk import block_read
from mccompile.lowering.draft import Draft
from mccompile.lowering.errors import LayersNotFound, SublayerNotFound
from mccompile.lowering.regions import Split, claims
from mccompile.lowering.sublayers import Chain, Cut, Inseparable, SublayerSpan
from mccompile.lowering.types import Piece


def split(captured: CapturedModel, policy: ir.PolicyIR) -> Split:
    """Returns the model with its blocks cut where the policy asks for it.

    Raises LayersNotFound (MC0501), LayersOverlap (MC0505) and SublayerNotFound (MC0507).
    """
    kept = {number for number, region in enumerate(policy.regions) if region.keep is not None}
    claimed, block = claims(captured, policy), block_read(policy)
    number = None if block is None else _number_of(block, captured, policy)
    part = None if block is None else block.part
    if part is None and not any(isinstance(region.where, ir.Sublayers) for region in policy.regions):
        owners = (own.get(None) for own in claimed)
        pieces = tuple(Piece(i, ()) for i in range(len(claimed)))
        watched = () if number is None else (number,)
        owned = tuple(owner if owner in kept else None for owner in owners)
        return Split(captured, pieces, owned, frozenset(), watched)
    splitter = _Splitter(captured)
    if block is not None and part is not None and number is not None:
        reason = splitter.lacks(captured.blocks[number], part, output=False)
        if reason:
            where = ir.Sublayers(ir.Blocks(number, number), part, at=block.at)
            raise SublayerNotFound(policy.name, captured.model_class, where, captured.blocks[number].path, reason)
    for site, own in zip(captured.blocks, claimed, strict=True):
        for own_part, owner in own.items():
            region = policy.regions[owner]
            reason = "" if own_part is None else splitter.lacks(site, own_part, region.keep == "output")
            if reason and isinstance(region.where, ir.Sublayers):
                raise SublayerNotFound(policy.name, captured.model_class, region.where, site.path, reason)
        outputs = {own_part for own_part, owner in own.items() if policy.regions[owner].keep == "output"}
        owners_here = {own_part: owner for own_part, owner in own.items() if owner in kept}
        splitter.add(site, owners_here, outputs, part if site.index == number else None)
    made = splitter.made()
    whole = () if part is not None else tuple(i for i, piece in enumerate(made.pieces) if piece.block == number)
    return replace(made, watched=made.watched or whole)


def _number_of(block: ir.BlockRef, captured: CapturedModel, policy: ir.PolicyIR) -> int:
    """The number of the block that a policy looks at. Raises LayersNotFound (MC0501)."""
    count = len(captured.blocks)
    number = block_bounds(ir.Blocks(block.block, -1), count)[0]
    if not 0 <= number < count:
        named = ir.Blocks(block.block, block.block, at=block.at)
        raise LayersNotFound(policy.name, captured.model_class, named, count)
    return number


@dataclass(frozen=True, slots=True)
class _Place:
    """A place where a block is cut: in front of the sublayer `number`, or inside of it, before its gate and its add."""

    number: int
    inside: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """What stands between two neighbouring places, and the region that keeps it; None where it is always computed.

    watched: rules look at what it adds.
    """

    start: _Place
    end: _Place
    owner: int | None
    watched: bool


@dataclass(frozen=True, slots=True)
class _Forms:
    """The two forms of a kind of block as chains."""

    full: Chain
    partial: Chain | None

    def lacks_inside(self, number: int) -> str:
        """Why a sublayer cannot be cut in front of its gate; "" where it can."""
        try:
            for chain in (self.full, self.partial):
                if chain is not None:
                    chain.inside(number)
        except Inseparable as reason:
            return str(reason)
        return ""


def _at(chain: Chain, place: _Place) -> Cut:
    return chain.inside(place.number) if place.inside else chain.cuts[place.number]


@dataclass(frozen=True, slots=True)
class _Names:
    """What the streams are called at a cut: as they are, and what a sublayer makes of them."""

    values: Mapping[Stream, str]
    inside: Mapping[Stream, str]

    @classmethod
    def at(cls, chain: Chain, place: _Place, enter: Mapping[Stream, str], leave: Mapping[Stream, str]) -> _Names:
        """enter, leave: what they are called at both ends of the block."""
        values, last = dict(enter), chain.cuts[-1].values
        for number, name in enumerate(chain.names[: place.number]):
            before, after = chain.cuts[number].values, chain.cuts[number + 1].values
            for stream in (s for s in values if after[s] is not before[s]):
                ends = after[stream] is last[stream]
                values[stream] = leave[stream] if ends else f"{leave[stream]}_after_{name}"
        made = _at(chain, place).inside
        return cls(values, {s: f"{leave[s]}_of_{chain.names[place.number]}" for s in made})

    def all(self) -> tuple[str, ...]:
        return *self.values.values(), *self.inside.values()


class _Splitter:
    """Makes the blocks of the split model one by one. Pieces of one kind at the same place are of one kind."""

    def __init__(self, captured: CapturedModel) -> None:
        self._captured = captured
        self._ports = {p.name: p for p in captured.streams}
        self._forms: dict[int, _Forms | Inseparable] = {}
        self._numbers: dict[tuple[int, _Place | None, _Place | None], int] = {}  # of kinds; a whole one has no places
        self._kinds: list[BlockKind] = []
        self._sites: list[BlockSite] = []
        self._pieces: list[Piece] = []
        self._owners: list[int | None] = []
        self._inside: set[str] = set()
        self._watched: list[int] = []

    def lacks(self, site: BlockSite, part: ir.SublayerName, output: bool) -> str:
        """Why a block has no such sublayer; "" where it has it. output: its output is kept, without the gate."""
        forms = self._of(site.kind)
        if isinstance(forms, Inseparable):
            return f"cannot be cut into sublayers: {forms}"
        if part not in forms.full.names:
            return f"has no `{part}`, but {' and '.join(forms.full.names)}"
        numbers = (i for i, name in enumerate(forms.full.names) if name == part and output)
        reasons = [reason for i in numbers if (reason := forms.lacks_inside(i))]
        return f"keeps no output of it: {reasons[0]}" if reasons else ""

    def add(
        self, site: BlockSite, owners: Mapping[ir.SublayerName | None, int], outputs: set[ir.SublayerName | None],
        watched: ir.SublayerName | None,
    ) -> None:
        """Cuts a block where the owner changes, and around what rules look at.

        owners: the regions that keep it, or a sublayer of it. outputs: the sublayers whose output is kept. watched:
        the sublayer whose result is looked at.
        """  # fmt: skip
        parts = watched is not None or any(part is not None for part in owners)
        forms = self._of(site.kind) if parts else None
        if forms is None or isinstance(forms, Inseparable):
            self._add_whole(site, owners.get(None), False)
            return
        around = owners.get(None)  # of what lies between its sublayers: the whole model, or nobody
        steps: list[_Step] = []
        for i, part in enumerate(forms.full.names):
            owner, places = owners.get(part, around), (_Place(i), _Place(i, inside=True), _Place(i + 1))
            if part in owners and part in outputs:
                looks = part == watched
                steps += [_Step(*places[:2], owner, looks), _Step(*places[1:], around, looks)]
            else:
                steps.append(_Step(places[0], places[2], owner, part == watched))
        runs = [list(run) for _, run in groupby(steps, key=lambda step: (step.owner, step.watched))]
        if len(runs) == 1:
            self._add_whole(site, steps[0].owner, steps[0].watched)
            return
        for run in runs:
            self._add_piece(site, forms, run)

    def made(self) -> Split:
        """The split model."""
        streams = dict.fromkeys(n for site in self._sites for n in (*site.streams_in, *site.streams_out))
        captured = replace(
            self._captured, kinds=tuple(self._kinds), blocks=tuple(self._sites),
            streams=tuple(self._ports[name] for name in streams),
        )  # fmt: skip
        return Split(captured, tuple(self._pieces), tuple(self._owners), frozenset(self._inside), tuple(self._watched))

    def _add_whole(self, site: BlockSite, owner: int | None, watched: bool) -> None:
        key = site.kind, None, None
        if key not in self._numbers:
            self._numbers[key] = len(self._kinds)
            self._kinds.append(self._captured.kinds[site.kind])
        self._watched += [len(self._sites)] if watched else []
        self._pieces.append(Piece(site.index, ()))
        self._owners.append(owner)
        self._sites.append(replace(site, index=len(self._sites), kind=self._numbers[key]))

    def _add_piece(self, site: BlockSite, forms: _Forms, run: Sequence[_Step]) -> None:
        start, end = run[0].start, run[-1].end
        key = site.kind, start, end
        if key not in self._numbers:
            self._numbers[key] = len(self._kinds)
            self._kinds.append(self._kind(site.kind, forms, start, end))
        own = tuple(forms.full.names[step.start.number] for step in run if not step.start.inside)
        self._watched += [len(self._sites)] if run[0].watched else []
        self._pieces.append(Piece(site.index, own))
        self._owners.append(run[0].owner)
        self._sites.append(self._site(site, forms, self._numbers[key], start, end))

    def _of(self, number: int) -> _Forms | Inseparable:
        if number not in self._forms:
            try:
                self._forms[number] = self._cut(number)
            except Inseparable as reason:
                self._forms[number] = reason
        return self._forms[number]

    def _cut(self, number: int) -> _Forms:
        """The chains of a kind. Raises Inseparable."""
        kind = self._captured.kinds[number]
        site = next(b for b in self._captured.blocks if b.kind == number)
        operands = {name: o for o, name in names_at(kind, site).items() if isinstance(o, Stream)}
        ends = {operands[s]: operands[m] for m, s in zip(site.streams_out, site.continues, strict=True) if s}
        odd = [name for name in site.streams_in if operands[name] not in ends]
        odd += [made for made, source in zip(site.streams_out, site.continues, strict=True) if not source]
        if self._captured.opaque or odd:
            raise Inseparable(self._captured.opaque or f"`{odd[0]}` is no stream with something added")
        if kind.mixing:
            raise Inseparable(f"`{kind.mixing[0].site}` is computed over all tokens")
        video = frozenset(s for s in ends if self._ports[s.name].beside is not None)
        full = Chain(kind.full, ends, video, kind.partial is not None)
        partial = None if kind.partial is None else Chain(kind.partial, ends, video, token_wise=True)
        if partial is not None and partial.names != full.names:
            raise Inseparable(f"on selected rows it has {', '.join(partial.names)}, on all {', '.join(full.names)}")
        return _Forms(full, partial)

    def _kind(self, number: int, forms: _Forms, start: _Place, end: _Place) -> BlockKind:
        """The kind of what stands between two places of a kind's blocks."""
        kind, chain = self._captured.kinds[number], forms.full
        own = {s: s.name for s in chain.ends}, {s: e.name for s, e in chain.ends.items()}
        names = _Names.at(chain, start, *own), _Names.at(chain, end, *own)
        full = _cut_out(kind.full, chain.between(_at(chain, start), _at(chain, end)), *names)
        partial = None
        if kind.partial is not None and forms.partial is not None:
            stretch = forms.partial.between(_at(forms.partial, start), _at(forms.partial, end))
            partial = _cut_out(kind.partial, stretch, *names)
        written = tuple(b for b in kind.buffers if full.holders()[Buffer(b.name)].users)
        allocate = _allocation(kind.allocate, names[0], written)
        parts = [part for part in (full, partial, allocate) if part is not None]
        used = list(dict.fromkeys(o for part in parts for o, n in part.holders().items() if _is_used(part, n)))
        streams = [o for o in used if isinstance(o, Stream)]
        values: list[Operand] = [*streams, *(o for o in used if isinstance(o, Shared))]
        vectors = [o for o in used if isinstance(o, Positions)]
        rest: list[Operand] = [*(Buffer(b.name) for b in written), *(o for o in used if isinstance(o, Weight))]
        modulated = kind.modulated
        if isinstance(modulated, ModulatedInput) and modulated.node not in {n.name for n in full.graph.nodes}:
            modulated = "its first sublayer attends to no video tokens"
        return BlockKind(
            _taking(full, [*values, *rest]), None if partial is None else _taking(partial, [*values, *vectors, *rest]),
            _taking(allocate, values), tuple(o.rows for o in vectors), written, modulated, kind.mixing,
        )  # fmt: skip

    def _site(self, site: BlockSite, forms: _Forms, number: int, start: _Place, end: _Place) -> BlockSite:
        """A piece of a block. Streams between pieces get a name and a port of their own."""
        chain, full = forms.full, self._kinds[number].full
        at = names_at(self._captured.kinds[site.kind], site)
        own = {s: s.name for s in chain.ends}, {s: e.name for s, e in chain.ends.items()}
        here = {s: at[s] for s in chain.ends}, {s: at[e] for s, e in chain.ends.items()}
        of_kind = [_Names.at(chain, place, *own) for place in (start, end)]
        of_site = [_Names.at(chain, place, *here) for place in (start, end)]
        called = {Stream(k): n for kind, names in zip(of_kind, of_site, strict=True) for k, n in _pairs(kind, names)}
        for names in of_site:
            for stream, name in (*names.values.items(), *names.inside.items()):
                self._ports.setdefault(name, replace(self._ports[here[1][stream]], name=name))
            self._inside |= set(names.inside.values())
        continued = {of_site[1].values[s]: of_site[0].values[s] for s in chain.ends}
        made = tuple(called[o] for o in full.gives if isinstance(o, Stream))
        path = "+".join(chain.names[i] for i in range(start.number, end.number + end.inside))
        return BlockSite(
            index=len(self._sites), path=f"{site.path}.{path}", kind=number, streams_out=made,
            streams_in=tuple(called[o] for o in full.takes if isinstance(o, Stream)),
            continues=tuple(continued.get(name, "") for name in made),
            shared=tuple(at[o] for o in full.takes if isinstance(o, Shared)),
            weights=tuple(at[o] for o in full.takes if isinstance(o, Weight)),
        )  # fmt: skip


def _pairs(kind: _Names, site: _Names) -> list[tuple[str, str]]:
    """What the kind calls a stream at a cut, and what a block calls it."""
    return list(zip(kind.all(), site.all(), strict=True))


def _cut_out(part: Part, stretch: SublayerSpan, enter: _Names, leave: _Names) -> Part:
    """One stretch of a form of a block. It still takes all operands of the block."""
    draft = Draft(part)
    entries = part.holders()
    now: dict[Stream, fx.Node] = {}
    for stream, value in stretch.before.values.items():
        now[stream] = draft.takes[stream]
        if value is not entries[stream]:
            now[stream] = _enter(draft, value, enter.values[stream])
    for stream, value in stretch.before.inside.items():
        _enter(draft, value, enter.inside[stream])
    for size, stream in stretch.sizes.items():
        draft.copies[size].args = (now[stream], *size.args[1:])
    draft.gives = {Stream(leave.values[s]): draft.copies[stretch.after.values[s]] for s in stretch.changed}
    draft.gives |= {Stream(leave.inside[s]): draft.copies[v] for s, v in stretch.after.inside.items()}
    ends = stretch.before.nodes()
    for node in reversed(part.graph.nodes):
        if node.op in ("call_function", "get_attr") and (node not in stretch.nodes or node in ends):
            draft.graph.erase_node(draft.copies[node])
    return draft.part()


def _enter(draft: Draft, value: fx.Node, name: str) -> fx.Node:
    """A placeholder in the place of a value that an earlier piece makes."""
    holder = draft.take(Stream(name), re.sub(r"\W", "_", name))
    draft.copies[value].replace_all_uses_with(holder)
    return holder


def _allocation(part: Part, enter: _Names, written: Sequence[BufferSpec]) -> Part:
    """The form that allocates the buffers of a piece. Streams have the same sizes at every cut."""
    draft = Draft(part)
    draft.rename({s: Stream(name) for s, name in enter.values.items()})
    draft.gives = {Buffer(b.name): draft.gives[Buffer(b.name)] for b in written}
    return draft.part()


def _is_used(part: Part, holder: fx.Node) -> bool:
    return bool(holder.users) or holder in part.results().values()


def _taking(part: Part, operands: Sequence[Operand]) -> Part:
    """The part with exactly these operands, in this order; it reads no other ones."""
    draft = Draft(part)
    for operand in [o for o in draft.takes if o not in operands]:
        draft.drop(operand)
    for number, operand in enumerate([o for o in operands if o not in draft.takes]):
        draft.take(operand, f"unread_{number}")
    draft.takes = {operand: draft.takes[operand] for operand in operands}
    for holder in reversed(draft.takes.values()):
        first = next(iter(draft.graph.nodes))
        if holder is not first:
            first.prepend(holder)
    return draft.part()
