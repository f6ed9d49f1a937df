"""The passes, in the order in which they run: the exact ones, and those that only a policy's words bring in.

A pass is a function `rewrite(part, setting) -> Rewritten | Refusal` in a file of its own, whose docstring says what
stands before, what after, and when it refuses. Here each gets its name, the forms that it rewrites, and its setting.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from mccompile import ir
from mccompile.capture.part import Buffer, Operand, Result, Shared, Stream
from mccompile.capture.types import names_at
from mccompile.lowering.additive import additive_masks
from mccompile.lowering.coarse import Coarse
from mccompile.lowering.drop_buffers import drop_buffers
from mccompile.lowering.fill import fill_rows
from mccompile.lowering.hoist import hoist
from mccompile.lowering.interleave import interleave
from mccompile.lowering.kept import as_computed, keep_encoded
from mccompile.lowering.key_picks import measures_of, pick_keys
from mccompile.lowering.locate import latent_inputs, sources_read, timestep_of
from mccompile.lowering.modulated import modulated_input
from mccompile.lowering.picks import expose_picks, pick_inside
from mccompile.lowering.pipeline import Form, Pass, Pieces, Place
from mccompile.lowering.prefixes import use_prefixes
from mccompile.lowering.strip import strip_unused
from mccompile.lowering.windows import use_windows


def _nothing(pieces: Pieces, place: Place) -> None:
    return None


def _proved(pieces: Pieces, place: Place) -> frozenset[str]:
    return pieces.proved


def _coarse(pieces: Pieces, place: Place) -> tuple[Coarse, ...]:
    return pieces.coarse


def _video(pieces: Pieces, place: Place) -> Stream:
    """Returns the stream of video tokens that enters blocks of a kind, or the first one if none is known to."""
    streams = [o for o in pieces.captured.kinds[place[1]].full.takes if isinstance(o, Stream)]
    holding = {p.name for p in pieces.captured.streams if p.beside is not None}
    return next((s for s in streams if s.name in holding), streams[0])


def _lasting(pieces: Pieces, place: Place) -> frozenset[Operand]:
    """Returns the shared values that stay the same through a request, in every block of the kind."""
    captured, kind = pieces.captured, pieces.captured.kinds[place[1]]
    changing = latent_inputs(captured) | {timestep_of(captured)}
    lasting = {p.name for p in captured.shared if p.token_axis is None and not p.depends & changing}
    names = [names_at(kind, b) for b in captured.blocks if b.kind == place[1]]
    return frozenset(o for o in kind.full.takes if isinstance(o, Shared) and all(n[o] in lasting for n in names))


def _dims(pieces: Pieces, place: Place) -> dict[str, int]:
    """Returns how many axes each buffer of a kind of block has."""
    made = pieces.captured.kinds[place[1]].allocate.results()
    return {r.name: len(n.args[1]) for r, n in made.items() if isinstance(r, Buffer) and isinstance(n, fx.Node)}


def _kept(pieces: Pieces, place: Place) -> ir.KeptDtype:
    """Returns the dtype of keys and values between calls."""
    return pieces.policy.cache.dtype


def _measures(pieces: Pieces, place: Place) -> tuple[int, ...]:
    """Returns the measures by which keys are picked."""
    keys = pieces.policy.cache.keys
    return () if keys is None else measures_of(keys)


def _wanted(pieces: Pieces, place: Place) -> frozenset[Result] | None:
    """Returns the results of a gather that are still needed: rows that blocks read, positions, picks."""
    if place[0] is not Form.GATHER:
        return None
    captured, rows = pieces.captured, pieces.per_kind(Form.ROWS)
    taken = [[o for o, n in part.holders().items() if isinstance(o, Stream | Shared) and n.users] for part in rows]
    read = {names_at(captured.kinds[b.kind], b)[o] for b in captured.blocks for o in taken[b.kind]}
    return frozenset(r for r in pieces.parts[place].gives if not isinstance(r, Shared) or r.name in read)


EXACT: tuple[Pass[Any], ...] = (
    Pass("drop_buffers", (Form.PLAIN,), drop_buffers, _nothing),
    Pass(
        "modulated_input", (Form.PLAIN,), modulated_input, _video, makes=Form.MODULATED,
        asked=lambda policy: any(s.name == "modulated_input" for s in sources_read(policy)),
    ),
    Pass("use_prefixes", (Form.ROWS,), use_prefixes, _proved),
    Pass("pick_inside", (Form.ROWS,), pick_inside, _coarse),
    Pass("interleave", (Form.ROWS,), interleave, _nothing),
    Pass("hoist", (Form.ROWS,), hoist, _lasting, makes=Form.ONCE),
    Pass("expose_picks", (Form.GATHER,), expose_picks, _coarse),
    Pass("strip_unused", tuple(Form), strip_unused, _wanted),
    Pass("additive_masks", (Form.PLAIN,), additive_masks, _nothing),
)  # fmt: skip

APPROXIMATE: tuple[Pass[Any], ...] = (
    Pass(
        "fill_rows", (Form.ROWS,), fill_rows, _dims,
        asked=lambda policy: any(region.nearest is not None for region in policy.regions),
    ),
    Pass(
        "keep_encoded", (Form.ROWS, Form.ONCE, Form.ALLOCATE), keep_encoded, _kept,
        asked=lambda policy: not as_computed(policy.cache.dtype),
    ),
    Pass(
        "use_windows", (Form.ROWS,), use_windows, _nothing,
        asked=lambda policy: policy.cache.window is not None,
    ),
    Pass(
        "pick_keys", (Form.ROWS,), pick_keys, _measures,
        asked=lambda policy: policy.cache.keys is not None,
    ),
)  # fmt: skip
