"""Counts the FLOPs of a run from its trace and the graphs that ran.

Each part runs once on fake tensors at the run's own sizes under torch's FlopCounterMode. Every block gets three
numbers: a constant (the work that its rows share), a price per row, and a price per row and key seen. Matrix products
and attention count, as in FlopCounterMode. The arithmetic of the decision is elementwise and does not count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mccompile import ir
from mccompile.lowering.key_picks import PICKED, is_sight, seen_within
from mccompile.lowering.locate import latent_inputs, timestep_of
from mccompile.lowering.types import LoweredModel, LoweredRegion, Piece
from mccompile.policy.bind import BoundPolicy
from mccompile.runtime.blocks import BlockCalls, Env, eager
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.execute import Postlude
from mccompile.runtime.layout import Layout
from mccompile.runtime.one_by_one import first_sample
from mccompile.runtime.prefixes import Prefixes, one_chunk
from mccompile.runtime.shared import SharedValues, Value
from mccompile.runtime.store import Memory
from mccompile.runtime.trace import Event

_FEW, _MORE = 4, 8  # rows at which a block is priced; its price is linear in them
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_OVER_KEYS = torch.ops.mccompile.prefix_attention, torch.ops.mccompile.window_attention, PICKED.overloadpacket


@dataclass(frozen=True, slots=True)
class BlockPrice:
    """FLOPs of one block for one sample. whole: on all rows; else constant + per_row * rows + per_key * keys seen.

    once: what blocks on rows take from the prompt alone, computed once per request and branch.
    """

    whole: float
    once: float
    constant: float
    per_row: float
    per_key: float


@dataclass(frozen=True, slots=True)
class Prices:
    """FLOPs of the parts of a call, for one sample.

    first: prelude values that stay the same through a request and branch (text). row: those of latents and timestep
    alone, which branches share. each: the other ones, and the postlude. lengths: per token, how many keys it may see;
    windowed: a window of the policy that runs leaves some of them out.
    others: of the further transformers that take turns, by their places; empty where there is only one. pieces: what
    the blocks are of the captured model. inputs: of the call. frame: tokens of a frame.
    """

    first: float
    row: float
    each: float
    blocks: tuple[BlockPrice, ...]
    lengths: np.ndarray
    pieces: tuple[Piece, ...]
    inputs: Mapping[str, Value] = field(repr=False)
    others: Mapping[str, Prices] = field(default_factory=dict)
    windowed: bool = True
    frame: int = 1
    _otherwise: dict[tuple[Piece, ...], tuple[BlockPrice, ...]] = field(default_factory=dict, repr=False)

    def at(self, expert: str) -> Prices:
        """Those of the transformer at a place of the pipeline; these where there is only one, or it is the first."""
        return self.others.get(expert, self)

    def keys(self, bound: BoundPolicy) -> np.ndarray:
        """Per token, how many keys it sees under a policy, int64 [L]."""
        seen = self._seen(bound)
        if seen is None:
            return self.lengths
        read = seen[:, 0] + seen[:, 2] - seen[:, 1]
        return read + seen[:, 3] if is_sight(seen) else read

    def asked(self, bound: BoundPolicy) -> np.ndarray:
        """Per token, keys whose attention is weighed for it: of each chunk that picks keys, those of its last frame."""
        keys, seen = bound.ir.cache.keys, self._seen(bound)
        if keys is None or seen is None:
            return np.zeros_like(self.lengths)
        asking = (np.arange(self.lengths.size) >= seen[:, 5]) & (seen[:, 3] > 0)
        times = sum(term.measure == "attention" for term in keys.by.terms)
        return times * np.where(asking, seen[:, 1] - seen[:, 0], 0)

    def _seen(self, bound: BoundPolicy) -> np.ndarray | None:
        """What each token sees under a policy with a window; None where it sees all that it may."""
        if bound.reach is None or not self.windowed:
            return None
        return seen_within(self.lengths, bound.reach, self.frame)

    def of(self, lowered: LoweredModel) -> tuple[BlockPrice, ...]:
        """Those of the blocks of a model that another policy may have split into sublayers."""
        if lowered.pieces == self.pieces:
            return self.blocks
        if lowered.pieces not in self._otherwise:
            self._otherwise[lowered.pieces] = price(lowered, self.inputs).blocks
        return self._otherwise[lowered.pieces]


def prices_of(model: CompiledModel, call: Mapping[str, object]) -> Prices:
    """Prices at the sizes of a call, the transformer's arguments; the same for every policy on a captured model.

    Transformers that take turns are called with the same arguments.
    """
    asked = {**call, "return_dict": False} if "return_dict" in call else dict(call)
    found = {}
    for each in model.experts:
        captured = each.runner.lowered.captured
        inputs = first_sample(captured, asked)
        found[each.runner.expert] = price(each.runner.lowered, inputs)
    first = model.experts[0].runner.expert
    return replace(found.pop(first), others=found)


def count(model: CompiledModel, events: Sequence[Event], prices: Prices) -> float:
    """FLOPs of the run that left `events`: of each transformer by its own prices."""
    own: dict[str, list[Event]] = {}
    for event in events:
        own.setdefault(event.expert, []).append(event)
    parts = {each.runner.expert: each for each in model.experts}
    return sum(_count_of(parts[name], some, prices.at(name)) for name, some in own.items())


def _count_of(model: CompiledModel, events: Sequence[Event], prices: Prices) -> float:
    """FLOPs of one transformer's part of a run."""
    calls: dict[tuple[str, str, int, int], list[Event]] = {}
    for event in events:
        calls.setdefault((event.request, event.branch, event.row, event.sample), []).append(event)
    begun = {(request, branch, sample) for request, branch, _, sample in calls}
    rows = {(request, row, sample) for request, _, row, sample in calls}
    by_rows = model.runner.engine.uses_rows
    once = len(begun) * _first(model, prices) + len(rows) * prices.row
    return once + sum(_call(model, prices, chunks, by_rows) for chunks in calls.values())


def count_by_row(model: CompiledModel, events: Sequence[Event], prices: Prices) -> tuple[float, ...]:
    """FLOPs of each row of a run's calls, in order. What a request needs once counts in its first row."""
    rows: dict[int, list[Event]] = {}
    for event in events:
        rows.setdefault(event.row, []).append(event)
    first = {each.runner.expert: _first(each, prices.at(each.runner.expert)) for each in model.experts}
    begun: set[tuple[str, str, int, str]] = set()
    found = []
    for row in sorted(rows):
        here = {(e.request, e.branch, e.sample, e.expert) for e in rows[row]}
        found.append(count(model, rows[row], prices) - sum(first[expert] for *_, expert in here & begun))
        begun |= here
    return tuple(found)


def _first(model: CompiledModel, prices: Prices) -> float:
    """What one sample of a branch needs once per request."""
    once = sum(block.once for block in prices.of(model.runner.lowered))
    return prices.first + (once if model.runner.engine.uses_rows else 0.0)


def _call(model: CompiledModel, prices: Prices, chunks: Sequence[Event], by_rows: bool) -> float:
    """One sample of one call: every region on the rows that it ran on."""
    of_group: dict[str, list[Event]] = {}
    for event in chunks:
        of_group.setdefault(event.region, []).append(event)
    by_group = list(of_group.values())
    per_chunk = prices.keys(model.runner.bound).reshape(len(by_group[0]), -1).mean(1)
    asked = prices.asked(model.runner.bound).reshape(len(by_group[0]), -1).sum(1)
    active = np.max([[0 if e.action == "skip" else e.tokens for e in group] for group in by_group], axis=0)
    total, blocks = prices.each, prices.of(model.runner.lowered)
    grid = model.runner.lowered.captured.grid
    behind = grid.behind(prices.inputs) if grid is not None else 0
    tokens = sum(event.tokens for event in by_group[0])  # of a chunk that may be shorter than that of the priced call
    size = 1.0 if grid is None else tokens / prod(grid.of_call(prices.inputs))
    for region in model.runner.lowered.regions:
        computed = np.array([e.computed for e in of_group.get(region.group, by_group[0])])
        rows = active if region.keep is None else computed
        for block in blocks[region.first : region.last + 1]:
            if not by_rows:
                total += block.whole * size if region.keep is None or computed.any() else 0.0
            elif rows.any():
                seen = float(rows @ per_chunk) + behind * per_chunk[0]
                seen += float((rows == tokens // len(rows)) @ asked) / 2  # one product of queries and keys, not two
                total += block.constant + block.per_row * (rows.sum() + behind) + block.per_key * seen
    return total


def price(lowered: LoweredModel, inputs: Mapping[str, Value]) -> Prices:
    """Prices at the sizes of `inputs` (flat, by name). Nothing is computed on real data but the mask's prefixes.

    A model's own code may look at values, so blocks that are such code are counted while they run.
    """
    captured = lowered.captured
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    mode: contextlib.AbstractContextManager[object] = contextlib.nullcontext() if captured.opaque else fakes
    faked = {n: fakes.from_tensor(v) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    fake = dict(inputs) if captured.opaque else faked
    changing = latent_inputs(captured) | {timestep_of(captured)}
    ports = {p.name: p for p in (*captured.shared, *(p for p in captured.streams if p.name in captured.entry))}
    text = [n for n, p in ports.items() if not p.depends & changing]
    latents = [n for n, p in ports.items() if p.depends and p.depends <= changing]
    mixed = [n for n in ports if n not in text and n not in latents]
    with mode, torch.no_grad():
        shared: dict[str, Value] = {}
        first, row, each = (
            _count(lambda names=names: shared.update(SharedValues(captured, names, eager).get(fake)))  # type: ignore[misc]
            for names in (text, latents, mixed)
        )
        env: Env = {n: shared[n] for n in captured.entry}
        batch = next(iter(env.values())).size(0)
        sources = SharedValues(captured, [p.name for p in captured.sources], eager).get(fake)
        blocks, env = _blocks(lowered, shared | sources, env)
        each += _count(lambda: Postlude(lowered, eager).run(env, shared, fake))
    single = tuple(BlockPrice(*(getattr(b, f.name) / batch for f in fields(b))) for b in blocks)
    lengths = _lengths(lowered, inputs, env)
    frames = 1 if captured.grid is None else captured.grid.of_call(inputs)[0]
    pieces, frame = lowered.pieces, max(1, len(lengths) // frames)
    return Prices(first / batch, row / batch, each / batch, single, lengths, pieces, inputs, frame=frame)


def _blocks(lowered: LoweredModel, shared: Mapping[str, Value], env: Env) -> tuple[list[BlockPrice], Env]:
    """The price of every block (one measurement per kind), and the streams after the last one."""
    plain = BlockCalls(lowered, eager, False)
    partial = BlockCalls(lowered, eager, True) if lowered.rows is not None else None
    memory, cache = Memory(), lowered.policy.cache
    by_kind: dict[int, BlockPrice] = {}
    found = []
    for i, site in enumerate(lowered.captured.blocks):
        region, after = LoweredRegion(i, i, None, ()), dict[str, torch.Tensor]()
        plain.mask_dtypes(i, env, shared)  # looked for before the block is counted: it is no work of a call
        whole = _count(lambda s=region, e=env, a=after: a.update(plain.run_plain(s, e, shared)))  # type: ignore[misc]
        if site.kind not in by_kind:
            by_kind[site.kind] = _block(partial, region, env, shared, whole, memory, cache)
        found.append(by_kind[site.kind])
        env = after
    return found, env


def _block(
    partial: BlockCalls | None, region: LoweredRegion, env: Env, shared: Mapping[str, Value], whole: float,
    memory: Memory, cache: ir.Cache,
) -> BlockPrice:  # fmt: skip
    if partial is None:
        return BlockPrice(whole, 0.0, 0.0, 0.0, 0.0)

    def rows(n: int) -> object:
        chosen = partial.select(np.arange(n), None, seen, env, shared)
        return partial.run_rows(region, partial.enter(region, env, chosen), chosen, env, shared, memory)

    tokens = partial_tokens(env)
    seen = one_chunk(tokens, cache)
    first, few, more = (_count(lambda n=n: rows(n)) for n in (_FEW, _FEW, _MORE))  # type: ignore[misc]
    per_row = (more - few) / (_MORE - _FEW)
    per_key = (_count(lambda: rows(_MORE), prefixes=True) - more) / (_MORE * tokens)
    return BlockPrice(whole, first - few, few - per_row * _FEW, per_row, per_key)


def partial_tokens(env: Env) -> int:
    """Tokens of the longest stream: as many keys as attention over prefixes is priced with."""
    return max(t.size(1) for t in env.values() if t.dim() > 1)


def _lengths(lowered: LoweredModel, inputs: Mapping[str, Value], env: Env) -> np.ndarray:
    tokens = partial_tokens(env)
    return Prefixes(lowered).lengths(inputs, Layout(1, 1, 1, tokens))


@contextlib.contextmanager
def _flex_as_dense() -> Iterator[None]:
    """Inside, flex attention is attention over all keys.

    Where it is not compiled it computes all of them, and torch's counter cannot look into it.
    """

    def dense(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, scale: float | None = None,
        enable_gqa: bool = False, **__: object,
    ) -> torch.Tensor:  # fmt: skip
        return F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=enable_gqa)

    functions = vars(flex_attention)
    own, functions["flex_attention"] = functions["flex_attention"], dense
    try:
        yield
    finally:
        functions["flex_attention"] = own


def _count(run: Callable[[], object], prefixes: bool = False) -> float:
    """FLOPs of `run`; prefixes: attention over prefixes counts as if every row saw all keys, else not at all."""

    def over_prefixes(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v) if prefixes else 0

    def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v)

    custom = dict.fromkeys(_OVER_KEYS, over_prefixes) | {_CPU_ATTENTION: attention}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter, _flex_as_dense():
        run()
    return float(counter.get_total_flops())
