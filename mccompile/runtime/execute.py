"""Runs one call of a lowered model: prelude, segments under the decision, postlude."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from mccompile.lowering.attention import bounds_of
from mccompile.lowering.strip import apply_to_slim, strip_unused
from mccompile.lowering.types import LoweredModel, Segment
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore

Backend = Callable[[fx.GraphModule, str], Callable[..., tuple[Value, ...]]]
Env = dict[str, torch.Tensor]


def eager(module: fx.GraphModule, role: str) -> Callable[..., tuple[Value, ...]]:
    """The backend that compiles nothing."""
    return module.forward


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows to compute, per sample, as bool [B, L] on the host."""

    rows: np.ndarray

    def groups(self) -> list[tuple[int | None, np.ndarray]]:
        """(sample, selected positions ascending); sample None where all samples select the same rows."""
        if (self.rows == self.rows[0]).all():
            found: list[tuple[int | None, np.ndarray]] = [(None, np.flatnonzero(self.rows[0]))]
        else:
            found = [(b, np.flatnonzero(row)) for b, row in enumerate(self.rows)]
        return [(sample, index) for sample, index in found if index.size]


class Blocks:
    """The transformer blocks of a lowered model as callables, with their weights."""

    def __init__(self, lowered: LoweredModel, backend: Backend, by_rows: bool) -> None:
        captured, rows = lowered.captured, lowered.rows if by_rows else None
        self._captured = captured
        self._rows = rows
        self._ports = {p.name: p for p in captured.streams}
        ports = (*captured.shared, *captured.sources)
        self._batched = {p.name for p in ports if p.depends and p.token_axis != 0}  # first axis is the batch
        if rows is None:
            self._plain = [
                apply_to_slim(backend(s.module, f"block{i}:plain"), s) for i, s in enumerate(lowered.plain)
            ]
        else:
            self._gather = apply_to_slim(backend(rows.gather.module, "gather"), rows.gather)
            self._partial = [
                apply_to_slim(backend(s.module, f"block{i}:partial"), s) for i, s in enumerate(rows.partial)
            ]
            kept = {p.name for i, p in enumerate(captured.sources) if i + 1 in rows.gather.kept}
            self.sources = tuple(p.name for p in captured.sources if p.name in kept)
        self._weights = [tuple(_lookup(captured.module, w) for w in site.weights) for site in captured.blocks]

    def weights(self, block: int) -> tuple[torch.Tensor, ...]:
        """The weights of one block, in the order of its kind's placeholders."""
        return self._weights[block]

    def run_plain(self, segment: Segment, env: Env, shared: Mapping[str, Value]) -> Env:
        """All rows of blocks first..last; returns `env` with the streams that they make."""
        for i in range(segment.first, segment.last + 1):
            site = self._captured.blocks[i]
            streams = (env[s] for s in site.streams_in)
            made = self._plain[site.kind](*streams, *(shared[s] for s in site.shared), *self._weights[i])
            env = env | dict(zip(site.streams_out, made, strict=True))
        return env

    def run_rows(
        self, segment: Segment, env: Env, shared: Mapping[str, Value], index: torch.Tensor, bounds: torch.Tensor,
        store: BranchStore, sample: int | None,
    ) -> tuple[Env, Env, Mapping[str, torch.Tensor]]:
        """The rows `index` of blocks first..last, K and V of the others taken from the store.

        sample: None for all. Returns (selected rows of the streams in, of the streams out, row vectors).
        """  # fmt: skip
        captured, forms = self._captured, self._rows
        assert forms is not None
        batch = max(t.size(0) for t in env.values())
        gathered = self._gather(index, *(shared.get(p.name) for p in captured.sources))
        values = dict(shared) | dict(zip(forms.gathered, gathered, strict=False))
        values = {n: one_sample(v, sample, batch) if n in self._batched else v for n, v in values.items()}
        vectors = {"video": index} | dict(zip(captured.row_keys, gathered[len(forms.gathered) :], strict=True))
        rows: Env = {}
        for name in captured.blocks[segment.first].streams_in:
            local: torch.Tensor = one_sample(env[name], sample, batch)
            port = self._ports[name]
            rows[name] = local if port.token_axis is None else local.index_select(port.token_axis, vectors[port.rows])
        entered = dict(rows)
        for i in range(segment.first, segment.last + 1):
            site = captured.blocks[i]
            if i not in store.buffers:
                store.buffers[i] = self.new_buffers(i, env, shared)
            made = self._partial[site.kind](
                *(rows[s] for s in site.streams_in),
                *(values.get(s) for s in site.shared),
                *(vectors[k] for k in captured.kinds[site.kind].row_keys),
                *(one_sample(t, sample, batch) for t in store.buffers[i]),
                *self._weights[i],
                bounds,
            )
            rows |= dict(zip(site.streams_out, made, strict=True))
        return entered, rows, vectors

    def new_buffers(self, i: int, env: Env, shared: Mapping[str, Value]) -> tuple[torch.Tensor, ...]:
        """Zeroed K and V of block i; a stream that exists only inside the segment is stood in for by its like."""
        site = self._captured.blocks[i]
        like = {(self._ports[n].rows, self._ports[n].token_axis): t for n, t in env.items() if n in self._ports}
        streams = []
        for name in site.streams_in:
            port = self._ports[name]
            streams.append(env[name] if name in env else like[port.rows, port.token_axis])
        allocate = self._captured.kinds[site.kind].allocate
        return allocate(*streams, *(shared.get(s) for s in site.shared))

    def put(self, name: str, into: torch.Tensor, rows: torch.Tensor, vectors: Mapping[str, torch.Tensor]) -> None:
        """Writes the selected rows of a stream back, in place; a stream without tokens is replaced whole."""
        port = self._ports[name]
        if port.token_axis is None:
            into.copy_(rows)
        else:
            into.index_copy_(port.token_axis, vectors[port.rows], rows)


class Postlude:
    """The model's final layers as a callable of the streams, the shared values and the user inputs."""

    def __init__(self, lowered: LoweredModel, backend: Backend) -> None:
        captured = lowered.captured
        slim = strip_unused(captured.postlude)
        names = (*captured.exit, *(p.name for p in captured.shared), *captured.inputs)
        self._names = tuple(names[i] for i in slim.kept)
        self.shared = tuple(n for n in self._names if n in {p.name for p in captured.shared})
        self._call = backend(slim.module, "postlude")

    def run(self, env: Env, shared: Mapping[str, Value], inputs: Mapping[str, Value]) -> tuple[Value, ...]:
        """Flat outputs of the model."""
        values = {**inputs, **shared, **env}
        return self._call(*(values[n] for n in self._names))


def merge(
    blocks: Blocks, segment: Segment, number: int, env: Env, shared: Mapping[str, Value], chosen: Selection,
    lengths: np.ndarray, store: BranchStore, layout: Layout,
) -> Env:
    """One segment under a selection: selected rows computed, the others from what is kept.

    lengths: per token, how many keys it may see (where attention runs over prefixes).
    Returns `env` with the segment's streams, all rows; rows that are neither selected nor kept hold the input.
    """  # fmt: skip
    out = dict(env)
    for source, made in segment.pairs:
        kept = store.kept.get((number, made)) if segment.keep else None
        if segment.keep in (None, "increment") or kept is None:
            out[made] = env[source].clone() if source else torch.zeros(0)
        else:
            out[made] = env[source] + kept if segment.keep == "residual" else kept.clone()
    for sample, positions in chosen.groups():
        positions = np.repeat(positions, 2) if positions.size == 1 else positions  # sizes 0 and 1 are specialised
        index = torch.from_numpy(positions).to(next(iter(env.values())).device, non_blocking=True)
        bounds = bounds_of(positions, lengths)
        entered, rows, vectors = blocks.run_rows(segment, env, shared, index, bounds, store, sample)
        for source, made in segment.pairs:
            if segment.keep in ("residual", "output"):
                kept = store.kept.setdefault((number, made), torch.zeros_like(out[made]))
                fresh = rows[made] - entered[source] if segment.keep == "residual" else rows[made]
                blocks.put(made, one_sample(kept, sample, layout.batch), fresh, vectors)
            blocks.put(made, one_sample(out[made], sample, layout.batch), rows[made], vectors)
    return out


def one_sample(value: Value, sample: int | None, batch: int) -> Value:
    """A view of one sample of a value whose first axis is the batch; the value itself for sample None."""
    if sample is None or not isinstance(value, torch.Tensor) or value.dim() == 0 or value.size(0) != batch:
        return value
    return value[sample : sample + 1]


def _lookup(module: torch.nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    return value.detach() if isinstance(value, torch.Tensor) else value
