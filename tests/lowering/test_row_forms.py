"""Row forms after lowering compute, bit by bit, what the captured ones do; and do less."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mccompile.backend.patches import multiply_patches
from mccompile.capture import flat_inputs
from mccompile.capture.part import Additive, Part, Pick, Positions, Shared, Stream
from mccompile.capture.types import Refusal
from mccompile.language.load import load_policy
from mccompile.lowering.additive import additive_masks
from mccompile.lowering.draft import Draft, Rewritten
from mccompile.lowering.interleave import interleave
from mccompile.lowering.lower import lower
from mccompile.lowering.types import LoweredModel, LoweredRegion
from mccompile.pipelines.probe import ExampleCall
from mccompile.runtime.blocks import BlockCalls, Env, eager
from mccompile.runtime.shared import SharedValues, Value
from mccompile.runtime.store import Memory
from mccompile.studio.bench.subjects import TINY

aten = torch.ops.aten
POLICY = load_policy("motioncache")


@pytest.fixture(scope="module")
def lowered() -> LoweredModel:
    """No mask proved: attention is the captured one, so that all else can be compared exactly."""
    model = TINY.model(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for block in model.blocks:  # zero as initialised: scale and shift would go unnoticed
            block.scale_shift_table.normal_()
    return lower(TINY.prepared(model).model, POLICY)


def call(samples: int, seed: int = 0) -> ExampleCall:
    """A call of that many samples, every frame at a timestep of its own."""
    one = TINY.call(torch.device("cpu"), torch.float32)
    torch.manual_seed(seed)
    sized = {n: v.expand(samples, *v.shape[1:]).clone() if isinstance(v, torch.Tensor) else v for n, v in one.items()}
    frames = TINY.chunks * TINY.frames
    text, latents = sized["encoder_hidden_states"], sized["hidden_states"]
    assert isinstance(text, torch.Tensor)
    assert isinstance(latents, torch.Tensor)
    return sized | {
        "timestep": torch.randint(0, 1000, (samples, frames)),
        "encoder_hidden_states": torch.randn_like(text), "hidden_states": torch.randn_like(latents),
    }  # fmt: skip


class Both:
    """The row forms of a model as captured and as lowered, each with keys and values of its own, over one call."""

    def __init__(self, lowered: LoweredModel, arguments: ExampleCall) -> None:
        self.lowered, captured = lowered, lowered.captured
        self.blocks = BlockCalls(lowered, eager, True)
        self.store = Memory()
        self.captured_buffers: dict[int, tuple[torch.Tensor, ...]] = {}
        self.call(arguments)
        self.names = [p.name for p in (*captured.shared, *captured.sources)]

    def call(self, arguments: ExampleCall) -> None:
        captured = self.lowered.captured
        inputs = dict(zip(captured.inputs, flat_inputs(captured, arguments), strict=True))
        names = [*captured.entry, *(p.name for p in (*captured.shared, *captured.sources))]
        self.values: dict[str, Value] = SharedValues(captured, names, eager).get(inputs)
        self.env: Env = {n: self.values[n] for n in captured.entry}  # type: ignore[misc]

    def as_lowered(self, positions: np.ndarray) -> torch.Tensor:
        tokens = next(iter(self.env.values())).size(1)
        region = LoweredRegion(0, len(self.lowered.captured.blocks) - 1, None, ())
        rows = self.blocks.select(positions, None, np.full(tokens, tokens), self.env, self.values)
        entered = self.blocks.enter(region, self.env, rows)
        made = self.blocks.run_rows(region, entered, rows, self.env, self.values, self.store)
        return made[self.lowered.captured.exit[0]]

    def as_captured(self, positions: np.ndarray) -> torch.Tensor:
        captured = self.lowered.captured
        index = torch.from_numpy(positions)
        assert captured.gather is not None
        found = captured.gather(index, *(self.values[p.name] for p in captured.sources))
        given = dict(zip(captured.gather.gives, found, strict=True))
        values = {r.name: v for r, v in given.items() if isinstance(r, Shared)}
        vectors = {r.rows: v for r, v in given.items() if isinstance(r, Positions)}
        made = {n: t.index_select(1, index) for n, t in self.env.items()}
        for site in captured.blocks:
            kind = captured.kinds[site.kind]
            assert kind.partial is not None
            full = [self.env[captured.entry[0]], *(self.values[s] for s in site.shared)]
            buffers = self.captured_buffers.setdefault(site.index, kind.allocate(*full))
            weights = [self.weight(w) for w in site.weights]
            streams, shared = [made[s] for s in site.streams_in], [values[s] for s in site.shared]
            results = kind.partial(*streams, *shared, *(vectors[k] for k in kind.row_keys), *buffers, *weights)
            made |= dict(zip(site.streams_out, results, strict=True))
        return made[captured.exit[0]]

    def weight(self, name: str) -> torch.Tensor:
        owner, _, leaf = name.rpartition(".")
        return getattr(self.lowered.captured.module.get_submodule(owner), leaf)  # type: ignore[no-any-return]


@pytest.fixture
def selections() -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    tokens = TINY.tokens
    sizes = (tokens, 7, tokens // 2, 2)
    return iter([np.sort(generator.choice(tokens, n, replace=False)) for n in sizes])


@torch.no_grad()
def test_lowered_row_forms_are_the_captured_ones(lowered: LoweredModel, selections: Iterator[np.ndarray]) -> None:
    """Everything first, then few rows over kept keys, with another prompt and other timesteps in between."""
    both = Both(lowered, call(1))
    for number, positions in enumerate(selections):
        both.call(call(1, seed=number))
        assert torch.equal(both.as_lowered(positions), both.as_captured(positions))


@torch.no_grad()
def test_the_texts_part_is_made_once_per_prompt(lowered: LoweredModel) -> None:
    assert lowered.rows is not None
    (once,) = lowered.rows.once
    assert once is not None
    calls = []
    both = Both(lowered, call(1))
    both.blocks._once = {  # counts
        block: dataclasses.replace(part, _call=lambda *a, c=part._call: calls.append(0) or c(*a))  # type: ignore[func-returns-value]
        for block, part in both.blocks._once.items()
    }
    positions = np.arange(5)
    for _ in range(3):
        both.as_lowered(positions)
    assert len(calls) == TINY.layers
    both.call(call(1, seed=1))
    both.as_lowered(positions)
    assert len(calls) == 2 * TINY.layers


def products(module: fx.GraphModule) -> int:
    return sum(n.target is aten.linear.default for n in module.graph.nodes)


def test_less_is_left_in_the_blocks(lowered: LoweredModel) -> None:
    rows, captured = lowered.rows, lowered.captured
    assert rows is not None
    (partial,), (once,) = rows.partial, rows.once
    assert once is not None
    raw = captured.kinds[0].partial
    assert raw is not None
    assert products(once.module) == 2  # text: keys, values
    assert products(partial.module) == products(raw.module) - 2
    assert not any(n.target is aten.copy_.default for n in partial.module.graph.nodes)
    assert [o for o in partial.takes if isinstance(o, Pick)] == [Pick("contiguous")]
    assert Pick("contiguous") in rows.gather.gives
    assert Shared("contiguous") in captured.gather.gives  # type: ignore[union-attr]
    assert Shared("contiguous") not in rows.gather.gives
    assert Shared("contiguous") not in partial.takes


def test_modulation_of_one_sample_of_a_batch() -> None:
    """Captured at a batch of two, picked for one: the batch in the graph's sizes is not taken at its word."""
    model = TINY.model(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for block in model.blocks:
            block.scale_shift_table.normal_()
    single = lower(TINY.prepared(model).model, POLICY)
    assert single.rows is not None
    (partial,) = single.rows.partial
    views = [n for n in partial.module.graph.nodes if n.target is aten.view.default]
    assert views
    assert all(isinstance(n.args[1][0], fx.Node) for n in views)


class Halves(nn.Module):
    """Writes even and odd entries, reads the whole."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        out[..., 0::2] = -x[..., 1::2]
        out[..., 1::2] = x[..., 0::2] * 2
        return out.permute(0, 2, 1)


class Gaps(Halves):
    """Every fourth entry stays as it was allocated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[..., 0::2] = x[..., 1::2]
        out[..., 1::4] = x[..., 0::4]
        return out.permute(0, 2, 1)


@pytest.mark.parametrize(("module", "rewritten"), [(Halves(), True), (Gaps(), False)])
def test_halves_are_joined_only_where_they_are_all_there_is(module: nn.Module, rewritten: bool) -> None:
    x = torch.randn(2, 3, 8)
    part = Part(torch.export.export(module, (x,)).module(), (Stream("x"),), (Stream("made"),))
    match interleave(part, None):
        case Rewritten(part):
            assert rewritten
        case Refusal() as refusal:
            assert not rewritten
            assert refusal.reason == "no value is written in two halves of one axis"
    assert any(n.target is aten.stack.default for n in part.graph.nodes) == rewritten
    (made,) = pytree.tree_leaves(part.module(x))
    assert torch.equal(made, module(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv3d(6, 10, (1, 2, 2), stride=(1, 2, 2)), nn.Conv3d(6, 10, 1), nn.Conv2d(6, 10, 2, stride=2),
        nn.Conv3d(6, 10, (2, 4, 3), stride=(2, 4, 3), bias=False),
    ],
)  # fmt: skip
def test_patches_as_a_product(conv: nn.Conv2d | nn.Conv3d) -> None:
    x = torch.randn(2, 6, *(k * 3 for k in conv.kernel_size))
    captured = torch.export.export(conv, (x,)).module()
    made = multiply_patches(captured)
    assert made is not captured
    (out,) = made(x)
    torch.testing.assert_close(out, conv(x), rtol=1e-5, atol=1e-5)
    assert out.flatten(2).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(6, 6, 2), nn.Conv2d(6, 6, 2, stride=2, groups=2), nn.Conv2d(6, 6, 2, stride=2, padding=1)]
)
def test_what_is_no_patch_embedding_stays(conv: nn.Conv2d) -> None:
    captured = torch.export.export(conv, (torch.randn(1, 6, 8, 8),)).module()
    assert multiply_patches(captured) is captured


@torch.no_grad()
def test_few_rows_allocate_no_buffer(lowered: LoweredModel) -> None:
    """Keys and values are written where they lie: a call on two rows takes less memory in all than one buffer has."""
    both = Both(lowered, dataclasses.replace(TINY, height=40, width=50).call(torch.device("cpu"), torch.float32))
    both.as_lowered(np.arange(2))
    buffers = [t for pair in both.store.buffers.values() for t in pair]
    places = [t.data_ptr() for t in buffers]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        both.as_lowered(np.array([3, 700]))
    taken = [e.cpu_memory_usage for e in profiled.events() if e.name == "[memory]" and e.cpu_memory_usage > 0]
    assert taken
    assert max(taken) < min(t.nbytes for t in buffers) / 4
    assert [t.data_ptr() for pair in both.store.buffers.values() for t in pair] == places


def test_the_mask_is_known_for_what_it_is(lowered: LoweredModel) -> None:
    """What else reads a value must not get it as 0 and -inf."""
    full = lowered.captured.kinds[0].full
    assert [o for o in lowered.plain[0].takes if isinstance(o, Additive)] == [Additive("unsqueeze_3")]
    draft = Draft(full)
    mask = draft.takes[Shared("unsqueeze_3")]
    with draft.graph.inserting_after(mask):
        draft.gives[Stream("read")] = draft.graph.call_function(aten.logical_not.default, (mask,))
    refused = additive_masks(draft.part(), None)
    assert isinstance(refused, Refusal)
    assert refused.reason == "no shared value is read as a mask and as nothing else"
