"""One region under a selection, and the model's final layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from mccompile.backend.role import Role
from mccompile.capture.part import Input, Operand, Shared, Stream
from mccompile.lowering.types import LoweredModel, LoweredRegion
from mccompile.runtime.blocks import Backend, BlockCalls, Env
from mccompile.runtime.forecast import Weights
from mccompile.runtime.operands import Misplaced
from mccompile.runtime.rows import NO_WORTH, FindFilling, Rows
from mccompile.runtime.shared import Value
from mccompile.runtime.store import Memory


class Postlude:
    """The model's final layers as a callable of the streams, the shared values and the user inputs."""

    def __init__(self, lowered: LoweredModel, backend: Backend) -> None:
        self._takes = lowered.postlude.takes
        self.shared = tuple(o.name for o in self._takes if isinstance(o, Shared))
        self._call = backend(lowered.postlude.module, Role("postlude"))

    def run(self, env: Env, shared: Mapping[str, Value], inputs: Mapping[str, Value]) -> tuple[Value, ...]:
        """Flat outputs of the model."""

        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    return env[name]
                case Shared(name):
                    return shared[name]
                case Input(name):
                    return inputs[name]
                case _:
                    raise Misplaced("postlude", operand)

        found = self._call(*(resolve(o) for o in self._takes))
        return tuple(_own(v, env) for v in found)


def selected(
    blocks: BlockCalls, mask: np.ndarray, seen: np.ndarray, env: Env, shared: Mapping[str, Value],
    fill: FindFilling | None = None, worth: torch.Tensor = NO_WORTH,
) -> tuple[Rows, ...]:
    """The tokens that a mask, bool [B, L], selects: once where all samples select the same, else sample by sample.

    seen: what each token of the latent sees (`Prefixes.seen`). Tokens behind the L ones are selected with the first one
    of a sample. fill: finds what tokens take from others. worth: what measures of keys count, where keys are picked.
    """  # fmt: skip
    behind = len(seen) - mask.shape[1]
    if behind > 0:
        mask = np.concatenate((mask, np.repeat(mask.any(1, keepdims=True), behind, 1)), 1)
    if (mask == mask[0]).all():
        found: list[tuple[int | None, np.ndarray]] = [(None, np.flatnonzero(mask[0]))]
    else:
        found = [(b, np.flatnonzero(row)) for b, row in enumerate(mask)]
    return tuple(blocks.select(p, sample, seen, env, shared, fill, worth) for sample, p in found if p.size)


def merge(
    blocks: BlockCalls, region: LoweredRegion, number: int, env: Env, shared: Mapping[str, Value],
    chosen: Sequence[Rows], store: Memory, weights: Weights | None = None, watched: Sequence[str] = (),
) -> Env:
    """One region under a selection: selected rows computed, the others from what is kept.

    weights: of the last kept results, where their sum stands in for the last one. watched: streams within the region
    that are looked at after the call, of the selected rows.

    Returns `env` with the region's streams, all rows; rows that are neither selected nor kept hold the input.
    The streams made are the store's own memory until the next call.
    """  # fmt: skip
    whole = len(chosen) == 1 and chosen[0].whole
    out = dict(env)
    for source, made in region.pairs:
        if not whole:
            out[made] = _unselected(blocks, region, (number, made), env, source, store, weights)
    for rows in chosen:
        entered = blocks.enter(region, env, rows)
        results = blocks.run_rows(region, entered, rows, env, shared, store)
        for source, made in region.pairs:
            fresh = results[made]
            if not whole and out[made].numel() == 0:  # the first time, of a stream that continues none
                out[made] = blocks.nothing(made, fresh, rows, env)
            if region.keep in ("residual", "output"):
                difference = region.keep == "residual" and source
                result = fresh - entered[source] if difference else fresh
                if region.nearest is None:
                    _keep(blocks, region, (number, made), out, result, rows, store, whole)
                elif not whole:
                    blocks.give(made, out[made], result, rows, add=bool(difference))
            if whole:
                out[made] = fresh
            else:
                blocks.put(made, out[made], fresh, rows)
        within = [name for name in watched if name in results and name not in env]
        for name in (n for n in within if n not in {made for _, made in region.pairs}):
            fresh = results[name]
            if whole:
                out[name] = fresh
                continue
            if name not in out:
                out[name] = blocks.nothing(name, fresh, rows, env)
            blocks.put(name, out[name], fresh, rows)
    pass_on(blocks, region, number, env, out, store)
    return out


def _keep(
    blocks: BlockCalls, region: LoweredRegion, key: tuple[int, str], out: Env, result: torch.Tensor, rows: Rows,
    store: Memory, whole: bool,
) -> None:
    """Keeps what a region has made of selected rows. out: the streams after it, of all rows. whole: these are all."""
    kept = store.kept.get(key)
    if kept is None:
        kept = store.kept[key] = blocks.keep_nothing(result if whole else out[key[1]])
    if region.depth > 1:
        kept = _make_room(blocks, region, key, rows, store)
    blocks.keep_rows(key[1], kept, result, rows)


def keep_whole(
    blocks: BlockCalls, region: LoweredRegion, number: int, before: Env, after: Env, store: Memory
) -> None:
    """Keeps all rows of what a region has made; the results before it move back by one place."""
    made = blocks.kept_of(region, number, before, after)
    for key in made if region.depth > 1 else ():
        if key in store.kept:
            store.older[key] = (store.kept[key], *store.older.get(key, ()))[: region.depth - 1]
    store.kept |= made
    pass_on(blocks, region, number, before, after, store)


def pass_on(blocks: BlockCalls, region: LoweredRegion, number: int, before: Env, after: Env, store: Memory) -> None:
    """Notes what a region has given at this step, computed or standing in, where a forecast reads earlier steps."""
    if not region.passes:
        return
    for key, value in blocks.kept_of(region, number, before, after).items():
        own = value.clone() if value is after[key[1]] else value  # a stream is written to again in the next call
        store.passed[key] = (own, *store.passed.get(key, ()))[: region.passes]


def _make_room(
    blocks: BlockCalls, region: LoweredRegion, key: tuple[int, str], rows: Rows, store: Memory
) -> torch.Tensor:
    """Where the rows' next result is kept: those before it move back by one place, and the oldest is forgotten."""
    kept = store.kept[key]
    older = store.older.get(key)
    if older is None:
        older = store.older[key] = tuple(torch.zeros_like(kept) for _ in range(region.depth - 1))
    if blocks.replaces(key[1], kept, rows):
        store.kept[key], store.older[key] = older[-1], (kept, *older[:-1])
        return older[-1]
    for newer, place in reversed([*pairwise((kept, *older))]):
        blocks.move_rows(key[1], newer, place, rows)
    return kept


def reused(
    blocks: BlockCalls, key: tuple[int, str], like: torch.Tensor, store: Memory, weights: Weights | None
) -> torch.Tensor:
    """What stands in for a result of a region: the last kept one, or the weighted sum of the last ones.

    It is on the device and in the dtype of `like`.
    """
    if weights is None or weights.plain:
        return blocks.kept_values(store.kept[key], like)
    tensors = (store.kept[key], *store.older.get(key, ()))
    kept, passed = ([blocks.kept_values(t, like) for t in of] for of in (tensors, store.passed.get(key, ())))
    return weights.sum(kept, blocks.token_axis(key[1]), passed)


def _unselected(
    blocks: BlockCalls, region: LoweredRegion, key: tuple[int, str], env: Env, before: str, store: Memory,
    weights: Weights | None,
) -> torch.Tensor:  # fmt: skip
    """All rows of a stream as they are without computing any, in memory of the store."""
    source, first = env.get(before), next(iter(env.values()))
    kept = reused(blocks, key, first, store, weights) if key in store.kept else None
    like = kept if source is None else source
    if like is None:
        return torch.zeros(0)
    out = store.merged.get(key)
    if out is None or out.shape != like.shape:
        out = store.merged[key] = torch.empty_like(like)
    if kept is None:
        return out.copy_(like)
    if source is None or region.keep == "output":
        return out.copy_(kept)
    return torch.add(source, kept, out=out)


def _own(value: Value, env: Env) -> Value:
    """An output in memory of its own: streams are written to again in the next call."""
    if not isinstance(value, torch.Tensor):
        return value
    at = value.untyped_storage()._cdata
    return value.clone() if any(t.untyped_storage()._cdata == at for t in env.values()) else value
