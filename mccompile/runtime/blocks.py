"""The transformer blocks of a lowered model as callables with their weights, on all rows or on selected ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from mccompile.backend.role import Backend, GraphCall, Role, Value
from mccompile.capture.types import Along, Count
from mccompile.lowering.attention import bounds_of
from mccompile.lowering.kept import decode, encode, kept_form
from mccompile.lowering.strip import apply_to_slim
from mccompile.lowering.types import LoweredModel, Segment
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import Memory, Once

Env = dict[str, torch.Tensor]


def eager(module: fx.GraphModule, role: Role) -> GraphCall:
    """The backend that compiles nothing."""
    return module.forward


@dataclass(frozen=True, slots=True)
class Rows:
    """Selected tokens of a call, and what blocks need of the shared values for them.

    sample: the sample that they belong to, None where all samples select the same. whole: all tokens, in order.
    index: int64 [n]; bounds: see lowering/attention.py; vectors: per row key, positions along that axis; picks: per
    coarse value, rows of its source.
    """

    sample: int | None
    batch: int
    whole: bool
    index: torch.Tensor
    bounds: torch.Tensor
    values: Mapping[str, Value]
    vectors: Mapping[str, torch.Tensor]
    picks: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class _LastingPart:
    """What a kind of block makes of the prompt. shared: places among the site's; weights: place of the first."""

    call: Callable[..., tuple[Any, ...]]
    shared: tuple[int, ...]
    weights: int


class Blocks:
    """The transformer blocks of a lowered model as callables, with their weights."""

    def __init__(self, lowered: LoweredModel, backend: Backend, by_rows: bool) -> None:
        captured, forms = lowered.captured, lowered.rows if by_rows else None
        self.cache = lowered.policy.cache
        self.staging: Staging | None = None  # None: kept tensors stay on the device of the weights
        self._captured = captured
        self._forms = forms
        self._ports = {p.name: p for p in captured.streams}
        ports = (*captured.shared, *captured.sources)
        first = {p.name for p in ports if p.depends and p.token_axis != 0}  # of one number of samples: the usual place
        self._batched = {p.name for p in ports if p.batch == Along(0)} if captured.samples else first
        self._counts = {p.name: 1 for p in ports if p.batch == Count()}
        if forms is None:
            self._plain = [
                apply_to_slim(backend(s.module, Role("block", i)), s) for i, s in enumerate(lowered.plain)
            ]
        else:
            self._gather = apply_to_slim(backend(forms.gather.module, Role("gather")), forms.gather)
            self._partial = [
                apply_to_slim(backend(s.module, Role("rows", i)), s) for i, s in enumerate(forms.partial)
            ]
            self._once = [self._lasting_part(backend, kind) for kind in range(len(forms.once))]
            kept = {p.name for i, p in enumerate(captured.sources) if i + 1 in forms.gather.kept}
            kept |= {source for _, source in forms.coarse}
            self.sources = tuple(p.name for p in captured.sources if p.name in kept) + self._held()
        floats = {t.dtype for t in captured.module.state_dict().values() if t.is_floating_point()}
        self._dtype = next(iter(floats)) if len(floats) == 1 else None  # that of queries, where there is only one
        self._masks = lowered.masks if forms is None and self._dtype is not None else ()
        self._additive: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._weights = [tuple(_lookup(captured.module, w) for w in site.weights) for site in captured.blocks]
        device = next((w.device for weights in self._weights for w in weights), torch.device("cpu"))
        if self.cache.device == "cpu" and device.type != "cpu":
            self.staging = Staging(device)

    def _lasting_part(self, backend: Backend, kind: int) -> _LastingPart | None:
        assert self._forms is not None
        slim = self._forms.once[kind]
        if slim is None:
            return None
        site = next(b for b in self._captured.blocks if b.kind == kind)
        form = self._captured.kinds[kind]
        streams, ports = len(site.streams_in), len(site.streams_in) + len(site.shared)
        shared = tuple(p - streams for p in slim.kept if p < ports)
        call = apply_to_slim(backend(slim.module, Role("prompt", kind)), slim)
        return _LastingPart(call, shared, ports + len(form.row_keys) + len(form.buffers))

    def _held(self) -> tuple[str, ...]:
        """The shared values of which some block takes what it computes once per prompt."""
        return tuple(dict.fromkeys(n for b in self._captured.blocks for n in self.lasting(b.index)))

    def weights(self, block: int) -> tuple[torch.Tensor, ...]:
        """The weights of one block, in the order of its kind's placeholders."""
        return self._weights[block]

    def run_plain(self, segment: Segment, env: Env, shared: Mapping[str, Value]) -> Env:
        """All rows of blocks first..last; returns `env` with the streams that they make."""
        shared = self._with_additive_masks(shared)
        for i in range(segment.first, segment.last + 1):
            site = self._captured.blocks[i]
            streams = (env[s] for s in site.streams_in)
            made = self._plain[site.kind](*streams, *(shared[s] for s in site.shared), *self._weights[i])
            env = env | dict(zip(site.streams_out, made, strict=True))
        return env

    def _with_additive_masks(self, shared: Mapping[str, Value]) -> Mapping[str, Value]:
        """Boolean masks as what attention makes of them (0 or -inf), made once and not in every block."""
        found = {}
        for name in self._masks:
            mask = shared[name]
            if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
                continue
            known = self._additive.get(name)
            if known is None or known[0] is not mask:
                zeros = torch.zeros(mask.shape, dtype=self._dtype, device=mask.device)
                known = self._additive[name] = (mask, zeros.masked_fill_(mask.logical_not(), float("-inf")))
            found[name] = known[1]
        return {**shared, **found} if found else shared

    def select(
        self, positions: np.ndarray, sample: int | None, lengths: np.ndarray, env: Env, shared: Mapping[str, Value]
    ) -> Rows:
        """The tokens at `positions` (ascending, at least one). lengths: per token, how many keys it may see."""
        positions = np.repeat(positions, 2) if positions.size == 1 else positions  # sizes 0 and 1 are specialised
        captured, forms = self._captured, self._forms
        assert forms is not None
        like = next(iter(env.values()))
        batch = max(t.size(0) for t in env.values())
        index = torch.from_numpy(positions).to(like.device, non_blocking=True)
        gathered = self._gather(index, *(shared.get(p.name) for p in captured.sources))
        values = dict(shared) | dict(zip(forms.gathered, gathered, strict=False))
        values |= {name: shared[source] for name, source in forms.coarse}
        if sample is not None:
            values = {n: one_sample(v, sample, batch) if n in self._batched else v for n, v in values.items()}
            values |= self._counts
        vectors = {"video": index} | dict(zip(captured.row_keys, gathered[len(forms.gathered) :], strict=False))
        picks = tuple(gathered[len(gathered) - len(forms.coarse) :])
        whole = sample is None and positions.size == lengths.size
        return Rows(sample, batch, whole, index, bounds_of(positions, lengths), values, vectors, picks)

    def enter(self, segment: Segment, env: Env, rows: Rows) -> Env:
        """The selected rows of the streams that enter a segment."""
        found: Env = {}
        for name in self._captured.blocks[segment.first].streams_in:
            local: torch.Tensor = one_sample(env[name], rows.sample, rows.batch)
            port = self._ports[name]
            if port.token_axis is not None and not self._all(name, local, rows):
                local = local.index_select(port.token_axis, rows.vectors[port.rows])
            found[name] = local
        return found

    def run_rows(
        self, segment: Segment, entered: Env, rows: Rows, env: Env, shared: Mapping[str, Value], store: Memory
    ) -> Env:
        """Blocks first..last on the selected rows, K and V of the others taken from the store; the streams made.

        entered: as `enter` returns it. env: all rows of the streams before the segment; sizes are read from them.
        """
        captured = self._captured
        made = dict(entered)
        numbers = range(segment.first, segment.last + 1)
        kept = [self._kept(i, rows, env, shared, store) for i in numbers]
        for i, home, local in zip(numbers, kept, self.staging.through(kept) if self.staging else kept, strict=True):
            site, kind = captured.blocks[i], captured.kinds[captured.blocks[i].kind]
            count = len(kind.buffers)
            results = self._partial[site.kind](
                *(made[s] for s in site.streams_in),
                *(rows.values.get(s) for s in site.shared),
                *(rows.vectors[k] for k in kind.row_keys),
                *local[:count],
                *self._weights[i],
                rows.bounds,
                *rows.picks,
                *local[count:],
            )
            if self.staging is not None:
                for spec, host, working in zip(kind.buffers, home, local, strict=False):
                    written = rows.vectors[spec.rows]
                    self.staging.put(host, spec.token_axis, written, working.index_select(spec.token_axis, written))
            made |= dict(zip(site.streams_out, results, strict=True))
        return made

    def _kept(
        self, i: int, rows: Rows, env: Env, shared: Mapping[str, Value], store: Memory
    ) -> tuple[torch.Tensor, ...]:
        """Buffers of block i, then what it makes of the prompt alone, for the sample of `rows`."""
        if i not in store.buffers:
            store.buffers[i] = self.new_buffers(i, env, shared)
        buffers = (one_sample(t, rows.sample, rows.batch) for t in store.buffers[i])
        return *buffers, *self._lasting(i, rows, shared, store)

    def _lasting(self, i: int, rows: Rows, shared: Mapping[str, Value], store: Memory) -> Sequence[torch.Tensor]:
        """What block i makes of the prompt alone, for the sample of `rows`; made again when the prompt is another."""
        site = self._captured.blocks[i]
        part = self._once[site.kind]
        if part is None:
            return ()
        names = self.lasting(i)
        held = [shared[n] for n in names]
        known = store.once.get(i)
        if known is None or not known.made_of(held):
            before, between = len(site.streams_in), part.weights - len(site.streams_in) - len(site.shared)
            absent, given = [None] * before, (shared.get(s) for s in site.shared)
            values = part.call(*absent, *given, *([None] * between), *self._weights[i])
            values = tuple(self.staging.home(v) for v in values) if self.staging else values
            known = store.once[i] = Once(tuple(held), tuple(values))
        if rows.sample is None or not self._batched.intersection(names):
            return known.values
        return [one_sample(v, rows.sample, rows.batch) for v in known.values]

    def lasting(self, i: int) -> tuple[str, ...]:
        """The shared values of which block i takes what it computes once per prompt."""
        part = self._once[self._captured.blocks[i].kind]
        return () if part is None else tuple(self._captured.blocks[i].shared[place] for place in part.shared)

    def new_buffers(self, i: int, env: Env, shared: Mapping[str, Value]) -> tuple[torch.Tensor, ...]:
        """Zeroed K and V of block i, as kept. Another stream of the same shape stands for one inside the segment."""
        site = self._captured.blocks[i]
        like = {(self._ports[n].rows, self._ports[n].token_axis): t for n, t in env.items() if n in self._ports}
        streams = []
        for name in site.streams_in:
            port = self._ports[name]
            streams.append(env[name] if name in env else like[port.rows, port.token_axis])
        assert self._forms is not None
        made = self._forms.allocate[site.kind](*streams, *(shared.get(s) for s in site.shared))
        return tuple(self.staging.home(t) for t in made) if self.staging else made

    def kept_values(self, kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A kept residual or output on the device and in the dtype of `like`."""
        return decode(self.staging.bring(kept) if self.staging else kept, self.cache.residual, like)

    def given_out(self, buffer: torch.Tensor, kind: int) -> torch.Tensor:
        """Rows of a buffer of that kind of block, on the device and in the dtype of the model."""
        allocates = self._captured.kinds[kind].allocate.graph.nodes
        dtype = next(n.kwargs["dtype"] for n in allocates if "dtype" in n.kwargs)
        device = self.staging.device if self.staging else buffer.device
        return decode(buffer.to(device), self.cache.dtype, torch.empty(0, dtype=dtype, device=device))

    def kept_of(self, segment: Segment, number: int, before: Env, after: Env) -> dict[tuple[int, str], torch.Tensor]:
        """The residuals or outputs of a segment, all rows, as they are kept."""
        found = {}
        for source, made in segment.pairs:
            difference = segment.keep == "residual" and source
            kept = encode(after[made] - before[source] if difference else after[made], self.cache.residual)
            found[number, made] = self.staging.home(kept) if self.staging else kept
        return found

    def keep_nothing(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros in the form in which a residual or output like `like` is kept."""
        shape, dtype = kept_form(like.shape, like.dtype, self.cache.residual)
        zeros = torch.zeros(shape, dtype=dtype, device="cpu" if self.staging else like.device)
        return self.staging.home(zeros) if self.staging else zeros

    def keep_rows(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Rows) -> None:
        """Writes the selected rows of a residual or output into what is kept of it."""
        kept = encode(made, self.cache.residual)
        if self.staging is None:
            self.put(name, into, kept, rows)
            return
        port = self._ports[name]
        local = one_sample(into, rows.sample, rows.batch)
        whole = port.token_axis is None or self._all(name, local, rows)
        self.staging.put(local, port.token_axis, None if whole else rows.vectors[port.rows], kept)

    def put(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Rows) -> None:
        """Writes the selected rows of a stream back, in place; a stream without tokens is replaced whole."""
        port = self._ports[name]
        local = one_sample(into, rows.sample, rows.batch)
        if port.token_axis is None or self._all(name, local, rows):
            local.copy_(made)
        else:
            local.index_copy_(port.token_axis, rows.vectors[port.rows], made)

    def _all(self, name: str, stream: torch.Tensor, rows: Rows) -> bool:
        """Whether the rows of a stream with tokens are all of it, in order."""
        port = self._ports[name]
        assert port.token_axis is not None
        return rows.whole and rows.vectors[port.rows].numel() == stream.size(port.token_axis)


def one_sample(value: Any, sample: int | None, batch: int) -> Any:
    """A view of one sample of a value whose first axis is the batch; the value itself for sample None."""
    if sample is None or not isinstance(value, torch.Tensor) or value.dim() == 0 or value.size(0) != batch:
        return value
    return value[sample : sample + 1]


def _lookup(module: torch.nn.Module, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    return value.detach() if isinstance(value, torch.Tensor) else value
