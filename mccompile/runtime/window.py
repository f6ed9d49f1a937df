"""A window of chunks that moves: rows of buffers and kept tensors follow their chunks to their new places.

A call of an autoregressive pipeline holds some chunks of the video, and keys of earlier chunks before them. Between
calls, chunks enter and leave, so a chunk moves to other rows. Whatever is kept of the chunk must move with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mccompile.capture.types import BufferSpec, CapturedModel
from mccompile.runtime.blocks import BlockCalls, Env
from mccompile.runtime.clock import Moment
from mccompile.runtime.errors import WindowMoved
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, History, Window

KeptKeyValues = tuple[tuple[torch.Tensor, ...], ...]


def window_of(moment: Moment, layout: Layout, inputs: Mapping[str, Value]) -> Window:
    """What the rows of a call are."""
    places = tuple((t.original, t.copy_of is not None) for t in moment.chunks)
    shapes = tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())
    return Window(places, layout.frames * layout.positions, shapes)


def move_window(
    store: BranchStore, now: Window, captured: CapturedModel, blocks: BlockCalls, env: Env, shared: Mapping[str, Value]
) -> None:
    """Lays `store` out for a call with the window `now`. Chunks that are no longer in it are forgotten.

    Raises WindowMoved (MC0607) where the rows of a buffer are not the call's tokens in one piece.
    """
    before, store.window = store.window, now
    if before is None or before == now:
        return
    if store.memory.chosen:  # they count the rows of the window before
        store.drop("keys were picked in another window")
    for course in store.courses.values():
        course.states.ahead = None
        _forget(course.history, before, now)
    for block, old in list(store.memory.buffers.items()):
        new = blocks.new_buffers(block, env, shared)
        specs = captured.kinds[captured.blocks[block].kind].buffers
        for spec, source, target in zip(specs, old, new, strict=True):
            _carry(source, target, spec.token_axis, (before, now), (spec.rows, spec.name))
        store.memory.buffers[block] = new
    ports = {p.name: p for p in captured.streams}
    for key, newest in store.memory.kept.items():
        port = ports[key[1]]
        if port.token_axis is not None and port.rows == "video":
            tensors = (newest, *store.memory.older.get(key, ()))
            moved = [_moved_rows(t, port.token_axis, (before, now), (port.rows, port.name)) for t in tensors]
            store.memory.kept[key] = moved[0]
            if len(moved) > 1:
                store.memory.older[key] = tuple(moved[1:])
    for key, passed in store.memory.passed.items():
        port = ports[key[1]]
        if port.token_axis is not None and port.rows == "video":
            what = (port.rows, port.name)
            store.memory.passed[key] = tuple(_moved_rows(t, port.token_axis, (before, now), what) for t in passed)


def _moved_rows(
    old: torch.Tensor, axis: int, windows: tuple[Window, Window], what: tuple[str, str]
) -> torch.Tensor:
    """What is kept of a stream, laid out for the window now; rows of chunks that were not in the call are 0."""
    shape = list(old.shape)
    shape[axis] = len(windows[1].places) * windows[1].tokens
    rows = old.new_zeros(shape)
    _carry(old, rows, axis, windows, what)
    return rows


def _carry(
    source: torch.Tensor, target: torch.Tensor, axis: int, windows: tuple[Window, Window], what: tuple[str, str]
) -> None:
    before, now = windows
    first, last = (_first_row(t.size(axis), w, what) for t, w in ((source, before), (target, now)))
    at = {place: i for i, place in enumerate(before.places)}
    for i, place in enumerate(now.places):
        if place in at:
            rows = source.narrow(axis, first + at[place] * before.tokens, before.tokens)
            target.narrow(axis, last + i * now.tokens, now.tokens).copy_(rows)


def _first_row(rows: int, window: Window, what: tuple[str, str]) -> int:
    """Where the call's tokens begin among `rows` rows that `what` (row key, name) describes: "16|30+video"."""
    kinds = what[0].split("+")
    if kinds.count("video") != 1 or kinds.index("video") not in (0, len(kinds) - 1):
        raise WindowMoved(what[1], what[0])
    return 0 if kinds[0] == "video" else rows - len(window.places) * window.tokens


def _forget(history: History, before: Window, now: Window) -> None:
    """A chunk that is not in the call has nothing kept; should it come back, it is computed anew."""
    left = set(before.places) - set(now.places)
    for chunk, copy in left:
        if copy:
            history.copies = {c for c in history.copies if c[1] != chunk}
        else:
            history.computed[:, chunk] = False
            history.cleaned[:, chunk] = False


def leading_key_values(store: BranchStore, captured: CapturedModel, chunks: int, blocks: BlockCalls) -> KeptKeyValues:
    """K and V of the first chunks of the last call, per block [B, rows, heads, head_dim], as copies.

    They are on the model's device and in its dtype, however they are kept.

    Every block must keep its keys and values in buffers (runs by rows do).
    """
    window = store.window
    assert window is not None
    blocks.settle()
    return tuple(
        tuple(
            blocks.given_out(_leading(buffer, spec, window, chunks), site.kind)
            for spec, buffer in zip(captured.kinds[site.kind].buffers, store.memory.buffers[site.index], strict=True)
        )
        for site in captured.blocks
        if captured.kinds[site.kind].buffers  # else a piece of a block that attends to no tokens
    )


def _leading(buffer: torch.Tensor, spec: BufferSpec, window: Window, chunks: int) -> torch.Tensor:
    first = _first_row(buffer.size(spec.token_axis), window, (spec.rows, spec.name))
    return buffer.narrow(spec.token_axis, first, chunks * window.tokens).movedim(spec.token_axis, 1).clone()
