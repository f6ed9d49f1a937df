"""The transformer blocks of a lowered model as callables with their weights, on all rows or on selected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import fx

from mccompile.backend.role import Backend, GraphCall, Purpose, Role, Value
from mccompile.backend.sdpa import cudnn_attention
from mccompile.capture.part import (
    Additive,
    Buffer,
    ChosenKeys,
    Filled,
    Hoisted,
    Index,
    KeyWorth,
    Operand,
    Part,
    PerSelection,
    Pick,
    Positions,
    Result,
    RowSource,
    Shared,
    Stream,
    TakenFrom,
)  # fmt: skip
from mccompile.capture.types import Along, SampleCount
from mccompile.lowering.kept import decode, encode, kept_form
from mccompile.lowering.key_picks import is_sight, picks_anew, places_of
from mccompile.lowering.types import LoweredModel, LoweredRegion
from mccompile.runtime.chosen import KeptPicks
from mccompile.runtime.masks import AdditiveMasks, Dtypes, QueryDtypes
from mccompile.runtime.nearest import give_results, own_results
from mccompile.runtime.operands import BoundPart, Misplaced, bound_at, of_shared, one_sample, own_count, weight_of
from mccompile.runtime.rows import NO_WORTH, FindFilling, KeyChoices, Rows
from mccompile.runtime.shapes import shaped
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import Memory, Once
from mccompile.runtime.upload import to_device, upload

Env = dict[str, torch.Tensor]


def eager(module: fx.GraphModule, role: Role) -> GraphCall:
    """The backend that compiles nothing."""
    return module.forward


class BlockCalls:
    """The transformer blocks of a lowered model as callables, with their weights."""

    def __init__(self, lowered: LoweredModel, backend: Backend, by_rows: bool) -> None:
        captured, forms = lowered.captured, lowered.rows if by_rows else None
        self.cache = lowered.policy.cache
        self.staging: Staging | None = None  # None: kept tensors stay on the device of the weights
        self._captured = captured
        self._ports = {p.name: p for p in captured.streams}
        ports = (*captured.shared, *captured.sources)
        first = {p.name for p in ports if p.depends and p.token_axis != 0}  # of one number of samples: the usual place
        self._batched = {p.name for p in ports if p.batch == Along(0)} if captured.samples else first
        self._counts = {p.name: p.batch.each for p in ports if isinstance(p.batch, SampleCount)}
        if forms is None:
            self._plain = self._at_blocks(lowered.plain, backend, "block")
            self._dtypes = QueryDtypes(captured, lowered.plain)
        else:
            self._gather_part, self._gather = forms.gather, backend(forms.gather.module, Role("gather"))
            self._partial = self._at_blocks(forms.partial, backend, "rows")
            self._once = self._at_blocks(forms.once, backend, "prompt")
            self._allocate = self._at_blocks(forms.allocate, eager, "rows")
            self._picks = KeptPicks(captured, self._partial)
            self._keeps = tuple(
                (*(Buffer(b.name) for b in kind.buffers), *(once.gives if once is not None else ()))
                for kind, once in zip(captured.kinds, forms.once, strict=True)
            )
            takes = [o for part in self._partial.values() for o in part.takes]
            self._per_selection = tuple(dict.fromkeys(o for o in takes if isinstance(o, PerSelection)))
            self._fills = any(isinstance(o, Filled) for o in takes)
            self._picked = tuple(dict.fromkeys(o.name for o in takes if isinstance(o, RowSource)))
            gathered = {o.name for o in forms.gather.takes if isinstance(o, RowSource)}
            held = (n for b in captured.blocks for n in self.lasting(b.index))
            own = (p.name for p in captured.sources if p.name in gathered or p.name in self._picked)
            self.sources = tuple(dict.fromkeys((*own, *held)))
        self._masks = AdditiveMasks(captured)
        tensors = (weight_of(captured.module, w) for site in captured.blocks for w in site.weights)
        device = next((w.device for w in tensors if isinstance(w, torch.Tensor)), torch.device("cpu"))
        if self.cache.device == "cpu" and device.type != "cpu":
            self.staging = Staging(device)

    def _at_blocks(self, parts: Sequence[Part | None], backend: Backend, purpose: Purpose) -> dict[int, BoundPart]:
        """By block, the part of its kind with the block's own weights, where the kind has one."""
        known = {kind: (p, backend(p.module, Role(purpose, kind))) for kind, p in enumerate(parts) if p is not None}
        return {b.index: bound_at(*known[b.kind], self._captured, b) for b in self._captured.blocks if b.kind in known}

    def run_plain(self, region: LoweredRegion, env: Env, shared: Mapping[str, Value]) -> Env:
        """All rows of blocks first..last; returns `env` with the streams that they make."""

        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    return env[name]
                case Shared(name):
                    return shared[name]
                case Additive(name):
                    return self._masks.of(name, shared[name], dtypes.get(name, self._masks.dtype))
                case _:
                    raise Misplaced("plain", operand)

        for i in range(region.first, region.last + 1):
            dtypes = self.mask_dtypes(i, env, shared)
            env = env | dict(zip(self._captured.blocks[i].streams_out, self._plain[i](resolve), strict=True))
        return env

    def mask_dtypes(self, i: int, env: Env, shared: Mapping[str, Value]) -> Dtypes:
        """The dtype that block i adds each mask in, by name; none where the model has one dtype. Found once a kind."""
        return {} if self._masks.dtype is not None else self._dtypes.of(i, self._plain[i], env, shared)

    def select(
        self, positions: np.ndarray, sample: int | None, seen: np.ndarray, env: Env, shared: Mapping[str, Value],
        fill: FindFilling | None = None, worth: torch.Tensor = NO_WORTH,
    ) -> Rows:
        """The tokens at `positions` (ascending, at least one). seen: what each token sees (`Prefixes.seen`).

        fill: finds what tokens take from others; without it each has its own results. worth: what measures of keys
        count where keys are picked.
        """
        positions = np.repeat(positions, 2) if positions.size == 1 else positions  # sizes 0 and 1 are specialised
        like = next(iter(env.values()))
        batch = max(t.size(0) for t in env.values())
        index = upload(positions, like.device)
        values: dict[str, Value] = dict(shared)
        vectors: dict[str, torch.Tensor] = {"video": index}
        picks: dict[str, Value] = {}
        for result, value in zip(self._gather_part.gives, self._gathered(index, shared), strict=True):
            match result:
                case Shared(name):
                    values[name] = value
                case Positions(rows):
                    assert isinstance(value, torch.Tensor)
                    vectors[rows] = value
                case Pick(name):
                    picks[name] = value
                case _:
                    raise Misplaced("gather", result)
        sources = {n: shared[n] for n in self._picked}
        if sample is not None:
            values, sources = self._of_sample(values, sample, batch), self._of_sample(sources, sample, batch)
        whole = sample is None and positions.size == len(seen)
        made = {o.name: o.make(positions, seen) for o in self._per_selection}
        made |= {o.name: to_device(made[o.name], like.device) for o in self._per_selection if o.on_device}
        filling = None
        if self._fills:
            samples = batch if sample is None else 1
            filling = own_results(index, samples) if fill is None else fill(positions, index, sample)
        choice = KeyChoices(worth, places_of(seen), picks_anew(positions, seen)) if is_sight(seen) else None
        return Rows(sample, batch, whole, index, made, values, sources, vectors, picks, filling, choice)

    def _gathered(self, index: torch.Tensor, shared: Mapping[str, Value]) -> tuple[Value, ...]:
        arguments: list[Value] = []
        for operand in self._gather_part.takes:
            match operand:
                case Index():
                    arguments.append(index)
                case RowSource(name):
                    arguments.append(shared[name])
                case _:
                    raise Misplaced("gather", operand)
        return self._gather(*arguments)

    def _of_sample(self, values: Mapping[str, Value], sample: int, batch: int) -> dict[str, Value]:
        """Shared values for a run of one sample alone."""
        own = {n: one_sample(v, sample, batch) if n in self._batched else v for n, v in values.items()}
        return own | {n: own_count(own[n], each, batch) for n, each in self._counts.items() if n in own}

    def enter(self, region: LoweredRegion, env: Env, rows: Rows) -> Env:
        """The selected rows of the streams that enter a region."""
        found: Env = {}
        blocks = self._captured.blocks[region.first : region.last + 1]
        made = {name for block in blocks for name in block.streams_out}
        for name in dict.fromkeys(n for block in blocks for n in block.streams_in if n not in made):
            local: torch.Tensor = one_sample(env[name], rows.sample, rows.batch)
            port = self._ports[name]
            if port.token_axis is not None and not self._all(name, local, rows):
                local = local.index_select(port.token_axis, rows.vectors[port.rows])
            found[name] = local
        return found

    def run_rows(
        self, region: LoweredRegion, entered: Env, rows: Rows, env: Env, shared: Mapping[str, Value], store: Memory
    ) -> Env:
        """Blocks first..last on the selected rows, K and V of the others taken from the store; the streams made.

        entered: as `enter` returns it. env: all rows of the streams before the region; sizes are read from them.
        """
        made = dict(entered)
        kept: Mapping[Operand | Result, torch.Tensor] = {}

        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    return made[name]
                case Shared(name):
                    return rows.values[name]
                case RowSource(name):
                    return rows.sources[name]
                case Pick(name):
                    return rows.picks[name]
                case Positions(key):
                    return rows.vectors[key]
                case Buffer() | Hoisted() | ChosenKeys():
                    return kept[operand]
                case KeyWorth():
                    return rows.choices.worth
                case PerSelection(name):
                    return rows.made[name]
                case Filled() | TakenFrom():
                    return rows.told(operand)
                case _:
                    raise Misplaced("rows", operand)

        numbers = range(region.first, region.last + 1)
        homes = [self._kept(i, rows, env, shared, store) for i in numbers]
        for i, home, local in zip(numbers, homes, self.staging.through(homes) if self.staging else homes, strict=True):
            site = self._captured.blocks[i]
            kept = dict(zip((*self._keeps[site.kind], *self._picks.operands(i)), local, strict=True))
            with cudnn_attention(allowed=rows.whole):
                results = self._partial[i](resolve)
            if self.staging is not None:
                self._put_back(site.kind, home, local, rows)
            streams = len(site.streams_out)
            self._picks.keep(home[len(self._keeps[site.kind]) :], results[streams:], rows, self.staging)
            made |= dict(zip(site.streams_out, results[:streams], strict=True))
        return made

    def _put_back(self, kind: int, home: Sequence[torch.Tensor], local: Sequence[torch.Tensor], rows: Rows) -> None:
        """Sends the rows that a block has written into its buffers to where they are kept."""
        assert self.staging is not None
        specs = self._captured.kinds[kind].buffers
        for place, spec in enumerate(specs):
            written = rows.written(spec.rows)
            values = local[place].index_select(spec.token_axis, written)
            self.staging.put(home[place], spec.token_axis, written, values)

    def _kept(
        self, i: int, rows: Rows, env: Env, shared: Mapping[str, Value], store: Memory
    ) -> tuple[torch.Tensor, ...]:
        """Buffers of block i, what it makes of the prompt alone, and its picks, for the sample of `rows`."""
        if i not in store.buffers:
            store.buffers[i] = self.new_buffers(i, env, shared)
        buffers = (one_sample(t, rows.sample, rows.batch) for t in store.buffers[i])
        return *buffers, *self._lasting(i, rows, shared, store), *self._picks.of(i, rows, store, self.staging)

    def _lasting(self, i: int, rows: Rows, shared: Mapping[str, Value], store: Memory) -> Sequence[torch.Tensor]:
        """What block i makes of the prompt alone, for the sample of `rows`; made again when the prompt is another."""
        names = self.lasting(i)
        if not names:
            return ()
        held = [shared[n] for n in names]
        known = store.once.get(i)
        if known is None or not known.made_of(held):
            known = store.once[i] = self._made_once(i, held, shared)
        if rows.sample is None or not self._batched.intersection(names):
            return known.values
        if all(v.size(0) == rows.batch for v in known.values):
            return [one_sample(v, rows.sample, rows.batch) for v in known.values]
        known = store.apart.get((i, rows.sample))
        if known is None or not known.made_of(held):  # values such as a mask for every head cannot be cut apart
            own = self._of_sample({n: shared[n] for n in names}, rows.sample, rows.batch)
            known = store.apart[i, rows.sample] = self._made_once(i, held, own)
        return known.values

    def _made_once(self, i: int, held: Sequence[Value], shared: Mapping[str, Value]) -> Once:
        """What block i makes of `shared`, where it is kept. held: the values that it is remembered by."""
        values = self._once[i](of_shared(shared))
        return Once(tuple(held), tuple(self.staging.home(v) if self.staging else v for v in values))

    def lasting(self, i: int) -> tuple[str, ...]:
        """The shared values of which block i takes what it computes once per prompt."""
        part = self._once.get(i)
        return () if part is None else tuple(o.name for o in part.takes if isinstance(o, Shared))

    def new_buffers(self, i: int, env: Env, shared: Mapping[str, Value]) -> tuple[torch.Tensor, ...]:
        """Zeroed K and V of block i, as kept. A stream of the same shape stands in for one inside the region."""
        like = {(self._ports[n].rows, self._ports[n].token_axis): t for n, t in env.items() if n in self._ports}

        def resolve(operand: Operand) -> Value:
            match operand:
                case Stream(name):
                    port = self._ports[name]
                    own = env.get(self._captured.root_of(name, env))
                    known = own if port.token_axis is None else env.get(name, like.get((port.rows, port.token_axis)))
                    return shaped(port, env, self._ports) if known is None else known
                case Shared(name):
                    return shared[name]
                case _:
                    raise Misplaced("allocate", operand)

        return tuple(self.staging.home(t) if self.staging else t for t in self._allocate[i](resolve))

    def kept_values(self, kept: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A kept residual or output on the device and in the dtype of `like`."""
        return decode(self.staging.bring(kept) if self.staging else kept, self.cache.residual, like)

    def given_out(self, buffer: torch.Tensor, kind: int) -> torch.Tensor:
        """Rows of a buffer of that kind of block, on the device and in the dtype of the model."""
        allocates = self._captured.kinds[kind].allocate.graph.nodes
        dtype = next(n.kwargs["dtype"] for n in allocates if "dtype" in n.kwargs)
        device = self.staging.device if self.staging else buffer.device
        return decode(buffer.to(device), self.cache.dtype, torch.empty(0, dtype=dtype, device=device))

    def kept_of(
        self, region: LoweredRegion, number: int, before: Env, after: Env
    ) -> dict[tuple[int, str], torch.Tensor]:
        """The residuals or outputs of a region, all rows, as they are kept."""
        found = {}
        for source, made in region.pairs:
            difference = region.keep == "residual" and source
            kept = encode(after[made] - before[source] if difference else after[made], self.cache.residual)
            found[number, made] = self.staging.home(kept) if self.staging else kept
        return found

    def settle(self) -> None:
        """Kept tensors in host memory are complete: from now on the host may read them."""
        if self.staging is not None:
            self.staging.settle()

    def keep_nothing(self, like: torch.Tensor) -> torch.Tensor:
        """Zeros in the form in which a residual or output like `like` is kept."""
        shape, dtype = kept_form(like.shape, like.dtype, self.cache.residual)
        zeros = torch.zeros(shape, dtype=dtype, device="cpu" if self.staging else like.device)
        return self.staging.home(zeros) if self.staging else zeros

    def nothing(self, name: str, made: torch.Tensor, rows: Rows, env: Env) -> torch.Tensor:
        """Zeros for all rows of a stream of which `made` are the selected ones."""
        port = self._ports[name]
        alike = (self._ports[n] for n in env if n in self._ports)
        like = next(p for p in alike if (p.rows, p.token_axis) == (port.rows, port.token_axis))
        shape = list(made.shape)
        if port.token_axis is not None:
            shape[port.token_axis] = env[like.name].size(port.token_axis)
        shape[0] = shape[0] if rows.sample is None else rows.batch
        return made.new_zeros(shape)

    def keep_rows(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Rows) -> None:
        """Writes the selected rows of a residual or output into what is kept of it."""
        kept = encode(made, self.cache.residual)
        if self.staging is None:
            self.put(name, into, kept, rows)
            return
        port = self._ports[name]
        local = one_sample(into, rows.sample, rows.batch)
        index = None if self._all(name, local, rows) else rows.vectors[port.rows]
        self.staging.put(local, port.token_axis, index, kept)

    def token_axis(self, name: str) -> int | None:
        """The token axis of a stream; None where it has none."""
        return self._ports[name].token_axis

    def replaces(self, name: str, kept: torch.Tensor, rows: Rows) -> bool:
        """Whether the rows are all that is kept of a stream, of all samples."""
        return rows.sample is None and self._all(name, kept, rows)

    def move_rows(self, name: str, source: torch.Tensor, target: torch.Tensor, rows: Rows) -> None:
        """Copies the selected rows of one kept tensor of a stream to another, wherever both are kept."""
        self.settle()
        port = self._ports[name]
        one, two = (one_sample(t, rows.sample, rows.batch) for t in (source, target))
        if port.token_axis is None or self._all(name, one, rows):
            two.copy_(one)
            return
        index = rows.vectors[port.rows].to(one.device)
        two.index_copy_(port.token_axis, index, one.index_select(port.token_axis, index))

    def give(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Rows, add: bool) -> None:
        """Gives all tokens with results those of the selected ones that they take. add: to what they have in `into`."""
        axis = self._ports[name].token_axis
        assert rows.filling is not None
        assert axis is not None
        give_results(rows.filling, one_sample(into, rows.sample, rows.batch), made, axis, add)

    def put(self, name: str, into: torch.Tensor, made: torch.Tensor, rows: Rows) -> None:
        """Writes the selected rows of a stream back, in place; a stream without tokens is replaced whole."""
        port = self._ports[name]
        local = one_sample(into, rows.sample, rows.batch)
        if port.token_axis is None or self._all(name, local, rows):
            local.copy_(made)
        else:
            local.index_copy_(port.token_axis, rows.vectors[port.rows], made)

    def _all(self, name: str, stream: torch.Tensor, rows: Rows) -> bool:
        """Whether the rows of a stream are all of it, in order; without tokens there is nothing to select."""
        port = self._ports[name]
        if port.token_axis is None:
            return True
        return rows.whole and rows.vectors[port.rows].numel() == stream.size(port.token_axis)
