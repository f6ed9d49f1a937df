"""Token merging, against its rule in plain PyTorch: layers run as if each token was the computed one nearest to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional as nnf

import mccompile.api as api
import mccompile.runtime.nearest
from mccompile.diagnostics.source import Source
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.nearest import Likeness, similarity
from tests.runtime.conftest import Tiny
from tests.runtime.test_forecast import GRID, call
from tests.runtime.test_laws import compiled as compiled_pipeline

SHARE = 0.6
Compare = Callable[[torch.Tensor], torch.Tensor]  # what enters the blocks to what tokens are compared by, [B, L, C]


def policy(by: str = "embedded", keep: str = "residual", layers: str = "", more: str = "", rule: str = "") -> str:
    return f"""policy merged {{
  signal novelty = 1 - similarity({by})
  phase all {{ {rule or "compute top 60% of tokens by novelty"} }}
  {layers}
  layers blocks[{"1.." if layers else "*"}] {{ keep {keep}  reuse as nearest({keep}, by = {by}) }}
  {more}
}}
"""


def cosines(x: torch.Tensor) -> torch.Tensor:
    """Of the tokens [L, C] of a chunk, each with each."""
    return nnf.cosine_similarity(x[:, None].float(), x[None].float(), dim=-1)


def novelty(x: torch.Tensor, rows: int, columns: int, stride: int = 2) -> torch.Tensor:
    """1 less the cosine to the anchor that is most like a token; anchors lie at even rows and even columns."""
    place = torch.arange(len(x)) % (rows * columns)
    anchor = (place // columns % stride == 0) & (place % columns % stride == 0)
    found = torch.full((len(x),), 2.0)
    found[~anchor] = 1 - cosines(x)[~anchor][:, anchor].amax(1)
    return found


def nearest(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """For each token of a chunk the computed one that it takes from."""
    found = torch.arange(len(x))
    found[~mask] = torch.nonzero(mask)[:, 0][cosines(x)[~mask][:, mask].argmax(1)]
    return found


class Merged(nn.Module):
    """All blocks in one, by hand. active: for each of the chunks, which are equal, whether its tokens are merged."""

    def __init__(self, blocks: Sequence[nn.Module], size: tuple[int, int], compare: Compare, keep: str) -> None:
        super().__init__()
        self.blocks, self.size, self.compare, self.keep = nn.ModuleList(blocks), size, compare, keep
        self.active: Sequence[bool] = (True,)
        self.masks: list[torch.Tensor] = []

    def sources(self, x: torch.Tensor) -> torch.Tensor:
        """For each token of each sample the token whose results it has, [B, L]."""
        like, count = self.compare(x), x.size(1) // len(self.active)
        to = torch.arange(x.size(1)).repeat(len(x), 1)
        mask = torch.ones(to.shape, dtype=torch.bool)
        for b, g in [(b, g) for b in range(len(x)) for g, merged in enumerate(self.active) if merged]:
            at = slice(g * count, (g + 1) * count)
            order = novelty(like[b, at], *self.size).argsort(descending=True, stable=True)
            mask[b, at] = torch.zeros(count, dtype=torch.bool).index_fill(0, order[: -int(-SHARE * count // 1)], True)
            to[b, at] = g * count + nearest(like[b, at], mask[b, at])
        self.masks.append(mask)
        return to

    def forward(self, x: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, rotary: object, *more: object) -> object:
        to = self.sources(x)
        assert isinstance(rotary, tuple)
        places = tuple(torch.cat([one[:, own] for own in to]) for one in rotary)
        before = out = torch.stack([sample[own] for sample, own in zip(x, to, strict=True)])
        for block in self.blocks:
            out = block(out, text, temb, places, *more)
        return out if self.keep == "output" else x + (out - before)


@contextmanager
def by_hand(model: WanTransformer3DModel, merged: Merged, first: int = 0) -> Iterator[Merged]:
    own = model.blocks
    model.blocks = nn.ModuleList([*own[:first], merged])
    try:
        yield merged
    finally:
        model.blocks = own


def compiled(model: nn.Module, prepared: api.Prepared, text: str, **more: object) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    more = {"backend": "eager", **more}
    made = api.compile(model, Source("p.policy", text), captured=prepared, clock=clock, **more)  # type: ignore[arg-type]
    return made, clock


def two(row: int) -> dict[str, object]:
    """A call of two samples, of prompts and latents of their own."""
    one, other = call(row), call(row + 3, text=1)
    values = {n: torch.cat([one[n], other[n]]) for n in ("hidden_states", "encoder_hidden_states")}  # type: ignore[list-item]
    return {**one, **values, "timestep": torch.cat([one["timestep"]] * 2)}  # type: ignore[list-item]


def entered(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize(
    ("by", "keep", "layers"),
    [("embedded", "residual", ""), ("embedded", "output", ""), ("input", "residual", "layers blocks[0] { compute }"),
     ("probe_output", "output", "layers blocks[0] { compute }")],
)  # fmt: skip
@pytest.mark.parametrize("calls", [call, two])
def test_layers_run_as_if_each_token_was_the_nearest_computed_one(
    by: str, keep: str, layers: str, calls: Callable[[int], dict[str, object]], small_wan: WanTransformer3DModel,
    captured_wan: api.Prepared,
) -> None:
    """In the first step too: nothing older is read, neither results nor keys and values."""
    made, clock = compiled(small_wan, captured_wan, policy(by, keep, layers))
    made.runner.masks = []
    first = 1 if layers else 0
    ours = []
    for clock.row in range(3):
        ours.append(made(**calls(clock.row))[0])
    with by_hand(small_wan, Merged(small_wan.blocks[first:], (4, 4), entered, keep), first) as merged, torch.no_grad():
        wanted = [small_wan(**calls(row))[0] for row in range(3)]
    for row, (one, other) in enumerate(zip(ours, wanted, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    for found, mask in zip(made.runner.masks, merged.masks, strict=True):
        assert np.array_equal(found.reshape(len(mask), -1), mask.numpy())
    assert {e.action for e in made.events} == {"partial"}
    assert {e.computed for e in made.events} == {29}  # of 48
    (store,) = next(iter(made.runner.requests.values())).branches.values()
    assert store.memory.kept == {}


def alike(row: int) -> dict[str, object]:
    """Two samples of one latent and prompts of their own: both compute the same tokens in one run."""
    return {**two(row), "hidden_states": torch.cat([call(row)["hidden_states"]] * 2)}  # type: ignore[list-item]


def test_samples_that_select_alike_run_together(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    made, clock = compiled(small_wan, captured_wan, policy())
    with by_hand(small_wan, Merged(small_wan.blocks, (4, 4), entered, "residual")), torch.no_grad():
        wanted = [small_wan(**alike(row))[0] for row in range(2)]
    for clock.row in range(2):
        torch.testing.assert_close(made(**alike(clock.row))[0], wanted[clock.row], rtol=1e-4, atol=1e-5)


def test_chunks_take_from_themselves(tiny: Tiny) -> None:
    """Chunks are at steps of their own. What is pending or finished is the model's: the latents are those by hand."""
    made = compiled_pipeline(tiny, "merge")
    video = tiny.run()
    made.undo()
    calls: dict[tuple[int, str], list[bool]] = {}
    for event in made.events:
        calls.setdefault((event.row, event.branch), []).append(event.phase != "")
    assert {e.action for e in made.events if e.phase} == {"partial"}
    transformer = tiny.pipe.transformer
    waiting = iter(calls.values())
    with by_hand(transformer, Merged(transformer.blocks, (3, 4), entered, "residual")) as merged:
        sources = merged.sources

        def of_this_call(x: torch.Tensor) -> torch.Tensor:
            active = next(waiting)
            chunks = x.size(1) // 24
            merged.active = [*active[:chunks], *[False] * (chunks - len(active))]
            return sources(x)

        merged.sources = of_this_call  # type: ignore[method-assign]
        wanted = tiny.run()
    assert next(waiting, None) is None
    torch.testing.assert_close(video, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own use of it
def test_chunks_compiled(tiny: Tiny) -> None:
    """Some chunks are skipped, some computed, one is merged: as many numbers of rows as there are kinds."""
    found = []
    for backend in ("eager", "inductor"):
        made = compiled_pipeline(tiny, "merge", backend=backend)
        found.append((tiny.run(num_frames=13, num_inference_steps=4, ar_step=2), [e.computed for e in made.events]))
        assert len({e.computed for e in made.events}) == 3
        made.undo()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-4)
    assert found[0][1] == found[1][1]


def test_folding_changes_no_decision(tiny: Tiny) -> None:
    found = []
    for fold in (True, False):
        made = compiled_pipeline(tiny, "merge", fold=fold)
        found.append((tiny.run(num_frames=13, num_inference_steps=4), [(e.action, e.computed) for e in made.events]))
        made.undo()
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][0], found[1][0])


def test_what_is_kept_is_predicted(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    made, clock = compiled(small_wan, captured_wan, policy())
    for clock.row in range(2):
        made(**call(clock.row))
    (request,) = made.runner.requests.values()
    predicted = Predictor(made.runner.lowered, made.runner.bound)
    found = predicted.count(predicted.store(call(0), predicted.moment(call(0), call(0))), predicted.cache)
    assert found.total == next(iter(request.branches.values())).nbytes()
    assert found.residuals == 0 < found.key_values


@pytest.mark.parametrize("by", ["embedded", "latent", "modulated_input"])
def test_both_branches_in_one_forward(by: str, tiny: Tiny) -> None:
    """Each branch takes by its own source: the follower's latents may be others."""
    size = {"num_frames": 13, "num_inference_steps": 5, "ar_step": 2}
    found = []
    for batch in ("", "  batch"):
        made = compiled_pipeline(tiny, policy(by, more=f"branches {{ share decision of cond{batch} }}"))
        found.append((tiny.run(**size), [(e.branch, e.action, e.computed) for e in made.events]))
        assert (made.runner.pairing is not None) == bool(batch)
        made.undo()
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=3e-5)
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize(
    ("more", "near"), [("device: cpu", 0.0), ("dtype: bfloat16", 2e-2), ("dtype: float8  device: cpu", 0.1)]
)
def test_kept_keys_and_values(more: str, near: float, tiny: Tiny) -> None:
    """Keys and values that tokens take are kept as those that they make: a chunk that ends reads them."""
    found = []
    for cache in ("", more):
        made = compiled_pipeline(tiny, policy(more=f"cache {{ {cache} }}\n  chunks {{ finished: keep }}"))
        found.append(tiny.run(num_frames=13, num_inference_steps=4, ar_step=2))
        assert made.runner.not_finite() == 0
        made.undo()
    assert float((found[0] - found[1]).norm() / found[0].norm()) <= near


def test_no_chunk_is_without_a_computed_token(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """A rule that selects nothing computes all, decided by data as by the clock."""
    rule = "reuse token while novelty < limit and step < 2"
    text = policy(rule=rule).replace("signal", "param limit = 2.5 in 0..3\n  signal", 1)
    events = {}
    for limit in (2.5, 1.5):
        made, clock = compiled(small_wan, captured_wan, text, limit=limit)
        for clock.row in range(3):
            made(**call(clock.row))
        events[limit] = [(e.action, e.computed) for e in made.events]
    assert events[2.5] == [("full", 48)] * 3
    assert events[1.5] == [("partial", 12)] * 2 + [("full", 48)]
    by_clock = policy(rule="reuse token while step < 2").replace("  signal novelty = 1 - similarity(embedded)\n", "")
    for fold in (True, False):
        made, clock = compiled(small_wan, captured_wan, by_clock, fold=fold)
        for clock.row in range(3):
            made(**call(clock.row))
        assert [e.action for e in made.events] == ["full"] * 3


def test_half_precision(small_wan: WanTransformer3DModel) -> None:
    """Cosines are in float32 whatever the model's dtype is: the same tokens as by the same numbers in float32."""
    model = WanTransformer3DModel(**small_wan.config).eval().requires_grad_(False)
    model.load_state_dict(small_wan.state_dict())
    model.to(torch.bfloat16)

    def halves(row: int) -> dict[str, object]:
        floats = {n for n, v in call(row).items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        return {n: v.bfloat16() if n in floats else v for n, v in call(row).items()}  # type: ignore[attr-defined]

    prepared = api.prepare(model, probe=halves(0), second={**halves(1), **_larger(halves(1))})
    made, _ = compiled(model, prepared, policy())
    made.runner.masks = []
    ours = made(**halves(0))[0]
    with by_hand(model, Merged(model.blocks, (4, 4), entered, "residual")) as merged, torch.no_grad():
        wanted = model(**halves(0))[0]
    assert np.array_equal(made.runner.masks[0].reshape(1, -1), merged.masks[0].numpy())
    torch.testing.assert_close(ours, wanted, rtol=0.05, atol=0.05)


def _larger(call: dict[str, object]) -> dict[str, object]:
    return {"hidden_states": torch.randn(1, 4, 5, 10, 12, dtype=torch.bfloat16)}


def test_similarity_by_hand_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = torch.randn(2, 3, 2, 15, 7, generator=torch.Generator().manual_seed(0))
    cells[0, 1, 1, 4] = 0
    for stride in (1, 2, 3):
        wanted = torch.stack([1 - novelty(x, 3, 5, stride) for x in cells.flatten(0, 1).flatten(1, 2)])
        for at_once in (2**24, 50):
            monkeypatch.setattr(mccompile.runtime.nearest, "AT_ONCE", at_once)
            found = similarity(cells, 3, stride)
            torch.testing.assert_close(found.view(6, 30), wanted)
            assert -1 <= float(found.min()) <= float(found.max()) <= 1
    cells[1, 0, 0, 0] = float("nan")  # an anchor
    assert similarity(cells, 3, 2)[1, 0].isnan().sum() == 30 - 12


@pytest.mark.parametrize("at_once", [2**24, 40])
def test_nearest_by_hand_and_in_pieces(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks without a computed token have no results; equal tokens are told apart by their place."""
    monkeypatch.setattr(mccompile.runtime.nearest, "AT_ONCE", at_once)
    drawn = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 4, 2, 6, 5, generator=drawn)
    cells[:, 3, 1] = cells[:, 3, 0]  # two frames alike
    mask = torch.rand(4, 12, generator=drawn) < 0.5
    mask[0], mask[1], mask[3, 6:] = False, True, False
    positions = torch.nonzero(mask.flatten())[:, 0]
    like = Likeness.of(cells)
    for sample in (None, 1):
        found = like.filling(positions.numpy(), positions, sample)
        assert torch.equal(found.filled, torch.arange(12, 48))
        for b, row in enumerate(found.taken) if sample is None else [(1, found.taken[0])]:
            wanted = [12 * g + nearest(cells[b, g].flatten(0, 1), mask[g]) for g in (1, 2, 3)]
            assert torch.equal(positions[row], torch.cat(wanted))


def test_a_lone_token() -> None:
    """Its position stands twice, as sizes of 1 are compiled apart."""
    positions = torch.tensor([1, 1])
    found = Likeness.of(torch.randn(1, 2, 1, 1, 3)).filling(positions.numpy(), positions, None)
    assert (found.filled.tolist(), found.taken.tolist()) == ([1, 1], [[0, 0]])
    found = Likeness.of(torch.randn(1, 2, 1, 2, 3)).filling(positions.numpy(), positions, None)
    assert (found.filled.tolist(), found.taken.tolist()) == ([0, 1], [[0, 0]])
