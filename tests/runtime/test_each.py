"""Blocks that decide apart, each by its own input, against the same written out in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.runtime.test_forecast import GRID, STEPS, call, outputs

BLOCKS, WARMUP = 4, 2


@pytest.fixture(scope="module")
def deep() -> tuple[WanTransformer3DModel, api.Prepared]:
    """A Wan transformer of four layers with random weights, and its capture."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=64, num_layers=BLOCKS, rope_max_seq_len=64,
    ).eval().requires_grad_(False)  # fmt: skip
    probe, second = ({**call(0, frames=f, height=h, width=w)} for f, h, w in ((4, 8, 14), (6, 10, 22)))
    return model, api.prepare(model, probe=probe, second=second)


def compiled(
    deep: tuple[WanTransformer3DModel, api.Prepared], text: str, **more: float
) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    model, captured = deep
    source = Source("p.policy", text)
    return api.compile(model, source, backend="eager", captured=captured, clock=clock, **more), clock


class Pruned(nn.Module):
    """A block under DBPrune: its input against that of its last computation, and its residual in its place."""

    def __init__(self, block: nn.Module, threshold: float, recent: bool) -> None:
        super().__init__()
        self.block, self.threshold, self.step = block, threshold, 0
        self.recent, self.changes = recent, list[float]()  # a limit by the mean of the last four changes
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None
        self.computed: list[bool] = []

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        change, limit, earlier = 0.0, self.threshold, self.changes[-4:]
        if self.kept is not None:
            before = self.kept[0]
            change = float((before - h).abs().mean() / before.abs().mean())
        if self.recent and earlier:
            limit = min(max(1.25 * sum(earlier) / len(earlier), limit), 2 * limit)
        self.changes.append(change)
        reuse = self.step >= WARMUP and change < limit
        self.step += 1
        self.computed.append(not reuse)
        if reuse:
            assert self.kept is not None
            return h + self.kept[1]
        out = self.block(h, *more)
        self.kept = h, out - h
        return out


def by_hand(
    model: WanTransformer3DModel, first: int, threshold: float, recent: bool = False
) -> tuple[list[torch.Tensor], list[Pruned]]:
    own = model.blocks
    pruned = [Pruned(block, threshold, recent) for block in own[first:]]
    model.blocks = nn.ModuleList([*own[:first], *pruned])
    try:
        return [model(**call(row))[0] for row in range(STEPS)], pruned
    finally:
        model.blocks = own


@pytest.mark.parametrize(
    ("base", "first", "threshold"),
    [("dbprune", 1, 0.15), ("dbprune", 1, 0.3), ("dbprune", 0, 0.2), ("dbprune_recent", 1, 0.1),
     ("dbprune_recent", 0, 0.2)],
)  # fmt: skip
def test_dbprune(base: str, first: int, threshold: float, deep: tuple[WanTransformer3DModel, api.Prepared]) -> None:
    layers = "" if first else "layers each blocks[*] { keep residual }"
    text = f"policy p extends {base} {{ {layers} }}"
    made, clock = compiled(deep, text, threshold=threshold, warmup=WARMUP)
    ours = outputs(made, clock, range(STEPS))
    theirs, pruned = by_hand(deep[0], first, threshold, base == "dbprune_recent")
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    done = {f"blocks[{n}]": [False] * STEPS for n in range(first, BLOCKS)}
    for event in made.events:
        done[event.region][event.step] = event.action == "full"
    assert [*done.values()] == [block.computed for block in pruned]
    assert threshold < 0.2 or len({tuple(computed) for computed in done.values()}) > 1
    decides = made.runner.engine.decides
    assert len(decides) == BLOCKS - first
    assert len({id(decide) for decide in decides.values()}) == 1


def test_a_name_has_one_rule_for_each_of_its_blocks(deep: tuple[WanTransformer3DModel, api.Prepared]) -> None:
    """Each block has its own account; a part of blocks may decide apart too."""
    text = """policy p {
      signal moved = rel_l1(input, over = chunk)
      phase first for 2 steps { compute }
      phase late { own: reuse chunk while accumulate(moved) < 0.2
                   text: compute every 3 steps }
      layers own = each blocks[1..2].ffn { keep residual }
      layers text = each blocks[*].cross { keep residual }
    }"""
    made, clock = compiled(deep, text)
    outputs(made, clock, range(STEPS))
    regions = dict.fromkeys(e.region for e in made.events)
    assert set(regions) == {"own[1].ffn", "own[2].ffn", *(f"text[{n}].cross" for n in range(BLOCKS))}
    full = {region: [e.step for e in made.events if e.region == region and e.action == "full"] for region in regions}
    assert all(full[f"text[{n}].cross"] == [0, 1, 2, 5, 8] for n in range(BLOCKS))
    assert all(0 < len(full[f"own[{n}].ffn"]) < STEPS for n in (1, 2))


def test_each_block_selects_its_own_tokens(deep: tuple[WanTransformer3DModel, api.Prepared]) -> None:
    text = """policy p {
      phase first for 2 steps { compute }
      phase late { reuse token while rel_l1(input, kept(input), over = token) < 0.25 }
      layers each blocks[1..] { keep residual }
    }"""
    made, clock = compiled(deep, text)
    runner = made.runner
    regions = [region for region in runner.lowered.regions if region.keep]
    seen: list[dict[str, torch.Tensor]] = []
    run = runner.engine.postlude.run

    def look(env, *more):  # type: ignore[no-untyped-def]
        seen.append({name: value.clone() for name, value in env.items()})
        return run(env, *more)

    runner.engine.postlude.run = look  # type: ignore[method-assign]
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    last: dict[str, torch.Tensor] = {}
    shares = set()
    for row in range(STEPS):
        clock.row = row
        made(**call(row))
        (store,) = runner.requests["request"].branches.values()
        for region in regions:
            ((source, out),) = region.pairs
            before, after = seen[row][source][0], seen[row][out][0]
            selection = store.courses[region.group].states.selection
            assert selection is not None
            mask = torch.from_numpy(selection.reshape(-1))
            if row < WARMUP:
                assert mask.all()
            else:
                # The whole source is kept when something of the chunk was computed.
                moved = (before - last[out]).abs().mean(-1) / last[out].abs().mean(-1)
                assert torch.equal(mask, moved >= 0.25)
                reused = after[~mask] - before[~mask]
                torch.testing.assert_close(reused, kept[out][1][~mask], rtol=1e-4, atol=1e-5)
                shares.add(float(mask.float().mean()))
            if mask.any():
                last[out] = before
            residual = after - before
            kept[out] = (before, residual if row == 0 else torch.where(mask[:, None], residual, kept[out][1]))
    assert len(shares) > 4


def test_what_is_kept_of_each_block_is_predicted(deep: tuple[WanTransformer3DModel, api.Prepared]) -> None:
    made, clock = compiled(deep, "policy p extends dbprune { }", warmup=WARMUP)
    outputs(made, clock, range(STEPS))
    (request,) = made.runner.requests.values()
    store = next(iter(request.branches.values()))
    predicted = Predictor(made.runner.lowered, made.runner.bound)
    moment = predicted.moment(call(0), call(0))
    assert predicted.count(predicted.store(call(0), moment), predicted.cache).total == store.nbytes()


@pytest.mark.slow
def test_compiled_blocks_decide_alike(deep: tuple[WanTransformer3DModel, api.Prepared]) -> None:
    """Inductor's graphs decide as the eager ones do."""
    text = "policy p extends dbprune { }"
    made, clock = compiled(deep, text, threshold=0.3, warmup=WARMUP)
    other_clock = Timeline("request", GRID, steps_in_order(GRID))
    model, captured = deep
    other = api.compile(
        model, Source("p.policy", text), captured=captured, clock=other_clock, threshold=0.3, warmup=WARMUP
    )
    rows = range(STEPS)
    for ours, theirs in zip(outputs(made, clock, rows), outputs(other, other_clock, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [(e.region, e.action) for e in made.events] == [(e.region, e.action) for e in other.events]
