"""Several `reuse ... while` in order: which tokens are computed and what stands in, against plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.generate.load import EMBEDDED, find_folder, load_pipeline
from mccompile.generate.placement import Placement
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.embedded_once import prepared
from tests.runtime.test_forecast import (
    GRID,
    STEPS,
    Kept,
    Plain,
    Predict,
    along_sigma,
    by_hand,
    call,
    outputs,
    taylor,
)

WARMUP = 3


def compiled(
    model: WanTransformer3DModel, prepared: api.Prepared, text: str, **more: object
) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(
        model, Source("p.policy", text), backend="eager", captured=prepared, clock=clock, **more  # type: ignore[arg-type]
    )
    return made, clock


def policy(rule: str, layers: str = "keep residual", signal: str = "rel_l1(latent)") -> str:
    return f"""policy p {{
  param small    = 0.05 in 0.01..0.90
  param moderate = 0.20 in 0.01..0.90
  signal moved = {signal}
  phase first for {WARMUP} steps {{ compute }}
  phase cache {{ {rule} }}
  layers blocks[*] {{ {layers} }}
}}
"""


SCOPE = """reuse chunk while accumulate(moved) < small
              reuse chunk as taylor(residual, along = sigma) while accumulate(moved) < moderate
              at most 4 in a row"""


def scope(small: float, moderate: float) -> tuple[list[bool], list[bool]]:
    """Which steps are computed, and which of the others are forecast, by the change of the latents alone."""
    computed, predicted = [], []
    account, row = 0.0, 0
    for step in range(STEPS):
        now = call(step)["hidden_states"]
        if step < WARMUP:
            fires, forecast = True, False
        else:
            before = call(step - 1)["hidden_states"]
            assert isinstance(now, torch.Tensor)
            assert isinstance(before, torch.Tensor)
            account += float((now - before).abs().mean() / before.abs().mean())
            fires = account >= moderate or row >= 4
            forecast = not fires and account >= small
        account, row = (0.0, 0) if fires else (account, row + 1)
        computed.append(fires)
        predicted.append(forecast)
    return computed, predicted


@pytest.mark.parametrize(("small", "moderate"), [(0.1, 0.3), (0.2, 0.25), (0.15, 0.9)])
def test_reused_predicted_recomputed(
    small: float, moderate: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """SCOPE's three ways, by a measured drift."""
    made, clock = compiled(small_wan, captured_wan, policy(SCOPE), small=small, moderate=moderate)
    computed, predicted = scope(small, moderate)
    assert any(predicted)
    assert not all(c or p for c, p in zip(computed, predicted, strict=True))

    def stands_in(step: int, kept: Kept) -> torch.Tensor:
        return along_sigma(step, kept) if predicted[step] else kept[-1][1]

    rows = range(STEPS)
    plain = Plain(list(small_wan.blocks), lambda s: computed[s], stands_in)
    for row, (ours, theirs) in enumerate(zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    assert [event.action == "full" for event in made.events] == computed
    assert ["taylor" in event.why for event in made.events] == predicted


@pytest.mark.parametrize("fold", [True, False])
def test_the_plan_knows_what_stands_in(
    fold: bool, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """A drift that the clock settles: the plan has every alternative, and the unfolded graph decides the same."""
    text = policy(SCOPE, signal="abs(sigma - before(sigma))")
    made, clock = compiled(small_wan, captured_wan, text, fold=fold, small=0.2, moderate=0.4)
    other, other_clock = compiled(small_wan, captured_wan, text, fold=not fold, small=0.2, moderate=0.4)
    for row, (a, b) in enumerate(
        zip(outputs(made, clock, range(STEPS)), outputs(other, other_clock, range(STEPS)), strict=True)
    ):
        torch.testing.assert_close(a, b, msg=lambda m, r=row: f"row {r}: {m}")
    whys = [["taylor" in event.why for event in each.events if event.action == "reuse"] for each in (made, other)]
    assert whys[0] == whys[1]
    assert len(set(whys[0])) == 2
    if fold:
        (plan,) = made.runner.requests["request"].plans.values()
        assert {(cell.action, cell.way) for cell in plan.cells} == {("compute", 0), ("reuse", 0), ("reuse", 1)}


def test_the_layers_say_what_stands_in_where_the_rule_does_not(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """An alternative may ask for the kept result itself where the layers have another stand-in."""
    rule = """reuse chunk as kept(residual) while accumulate(moved) < small
              reuse chunk while accumulate(moved) < moderate"""
    text = policy(rule, "keep residual  reuse as taylor(residual, order = 2)")
    made, clock = compiled(small_wan, captured_wan, text, small=0.15, moderate=0.4)
    computed, predicted = scope(0.15, 0.4)
    rows = range(STEPS)
    plain = Plain(
        list(small_wan.blocks), lambda s: computed[s],
        lambda step, kept: taylor(2)(step, kept) if predicted[step] else kept[-1][1],
    )  # fmt: skip
    for ours, theirs in zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def tokens_of(latents: object) -> torch.Tensor:
    """Latents [1, C, F, H, W] as tokens [F * H/2 * W/2, C * 4]."""
    assert isinstance(latents, torch.Tensor)
    _, c, f, h, w = latents.shape
    cut = latents.reshape(c, f, h // 2, 2, w // 2, 2).permute(1, 2, 4, 0, 3, 5)
    return cut.reshape(f * (h // 2) * (w // 2), c * 4)


HYBRID = """reuse token while accumulate(moved) < small
              reuse token as taylor(residual, order = 2) while accumulate(moved) < moderate
              reuse token as 0.5 * kept(residual) + 0.5 * kept(residual, 2) while accumulate(moved) < 1.5 * moderate"""


def watched(made: CompiledModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What enters and leaves the blocks in each call that follows, [1, L, C]; masks are kept too."""
    runner = made.runner
    (pair,) = runner.lowered.regions[0].pairs
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    run, runner.masks = runner.engine.postlude.run, []

    def look(env, *more):  # type: ignore[no-untyped-def]
        seen.append((env[pair[0]].clone(), env[pair[1]].clone()))
        return run(env, *more)

    runner.engine.postlude.run = look  # type: ignore[method-assign]
    return seen


def average(step: int, kept: Kept) -> torch.Tensor:
    return (kept[-1][1] + kept[-2][1]) / 2 if len(kept) > 1 else kept[-1][1]


WAYS: dict[str, Predict] = {
    "kept": lambda step, kept: kept[-1][1], "forecast": taylor(2), "averaged": average,
    "doubled": lambda step, kept: 2 * kept[-1][1],
}  # fmt: skip


def by_token(made: CompiledModel, clock: Timeline, decide: Callable[[torch.Tensor], list[str]]) -> dict[str, int]:
    """Runs all steps and holds every token against its own account and its own kept residuals.

    decide: of the accounts of all tokens, the name of what is done with each. Returns how often each was done.
    """
    seen = watched(made)
    outputs(made, clock, range(STEPS))
    assert made.runner.masks is not None
    count = seen[0][0].size(1)
    kept: list[list[tuple[int, torch.Tensor]]] = [[] for _ in range(count)]
    accounts, used = torch.zeros(count), dict[str, int]()
    for row, ((before, after), mask) in enumerate(zip(seen, made.runner.masks, strict=True)):
        done = ["computed"] * count
        if row >= WARMUP:
            now, last = (tokens_of(call(at)["hidden_states"]) for at in (row, row - 1))
            accounts = accounts + (now - last).abs().mean(-1) / last.abs().mean(-1)
            done = decide(accounts)
        for token, (computed, way) in enumerate(zip(mask.reshape(-1), done, strict=True)):
            assert bool(computed) == (way == "computed"), f"row {row}, token {token}"
            used[way] = used.get(way, 0) + 1
            if computed:
                accounts[token] = 0.0
                kept[token].append((row, after[0, token] - before[0, token]))
            else:
                expected = before[0, token] + WAYS[way](row, kept[token])
                torch.testing.assert_close(after[0, token], expected, rtol=1e-4, atol=1e-5)
    return used


def test_each_token_has_its_own_alternative(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Slow tokens are reused, the middle ones forecast, the next averaged, the others computed: token by token."""
    text = policy(HYBRID, signal="rel_l1(latent, over = token)")
    made, clock = compiled(small_wan, captured_wan, text, small=0.12, moderate=0.3)

    def decide(accounts: torch.Tensor) -> list[str]:
        limits = ((0.12, "kept"), (0.3, "forecast"), (0.45, "averaged"))
        return [next((way for limit, way in limits if a < limit), "computed") for a in accounts.tolist()]

    used = by_token(made, clock, decide)
    assert len(used) == 4
    assert min(used.values()) > 5, used
    partial = [event.why for event in made.events if event.action == "partial"]
    assert any("as it was kept" in why and "taylor" in why for why in partial)


def test_a_held_cell_takes_the_last_alternative(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """A guard reuses tokens though no condition holds."""
    rule = """reuse token while accumulate(moved) < small
              reuse token as 2 * kept(residual) while accumulate(moved) < moderate
              hold when selected < 90%"""
    text = policy(rule, signal="rel_l1(latent, over = token)")
    made, clock = compiled(small_wan, captured_wan, text, small=0.15, moderate=0.3)
    held = 0

    def decide(accounts: torch.Tensor) -> list[str]:
        nonlocal held
        fires = accounts >= 0.3
        if not fires.float().mean() < 0.9:
            return ["computed" if a >= 0.3 else "doubled" if a >= 0.15 else "kept" for a in accounts]
        held += int(fires.sum())
        return ["kept" if a < 0.15 else "doubled" for a in accounts]

    used = by_token(made, clock, decide)
    assert held > 5
    assert set(used) == {"computed", "kept", "doubled"}


@pytest.mark.slow
def test_compiled_alternatives(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Inductor's graphs choose as the eager ones do."""
    text = policy(HYBRID, signal="rel_l1(latent, over = token)")
    made, clock = compiled(small_wan, captured_wan, text, small=0.12, moderate=0.3)
    clock_of_other = Timeline("request", GRID, steps_in_order(GRID))
    source = Source("p.policy", text)
    more = {"small": 0.12, "moderate": 0.3}
    other = api.compile(small_wan, source, captured=captured_wan, clock=clock_of_other, **more)  # type: ignore[arg-type]
    rows = range(STEPS)
    for ours, theirs in zip(outputs(made, clock, rows), outputs(other, clock_of_other, rows), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [(e.action, e.computed, e.why) for e in made.events] == [(e.action, e.computed, e.why) for e in other.events]


@pytest.mark.slow
def test_the_embedded_model_under_scope() -> None:
    """Both guidance branches of a generation, against the pipeline's own model with its blocks replaced by hand."""
    pipe = load_pipeline(find_folder(EMBEDDED), Placement.of("cpu", None, False))
    steps, small, moderate = 9, 0.2, 0.5
    arguments = {
        "prompt": "a red circle moving right over a slate texture", "height": 32, "width": 32, "num_frames": 9,
        "num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent",
    }  # fmt: skip
    text = """policy p extends scope { signal drift = rel_l1(modulation) }"""
    made = api.compile(
        pipe, Source("p.policy", text), backend="eager", captured=prepared(pipe, call=arguments),
        small=small, moderate=moderate,
    )  # fmt: skip
    ours = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    pipe.transformer = made.undo()
    by_hand_ = Scope(pipe.transformer, pipe.scheduler.sigmas.tolist(), small, moderate)
    theirs = pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-3, atol=1e-3)
    for branch in (0, 1):
        name = ("cond", "uncond")[branch]
        events = {e.step: e for e in made.events if e.branch == name and e.chunk == 0}
        done = ["forecast" if "taylor" in events[s].why else events[s].action for s in range(steps)]
        assert done == by_hand_.done[branch]
        assert set(done) == {"full", "reuse", "forecast"}


class Scope(nn.Module):
    """All blocks of a model in one, under SCOPE. Calls alternate between the guidance branches, cond first."""

    def __init__(self, model: nn.Module, sigmas: list[float], small: float, moderate: float) -> None:
        super().__init__()
        self.blocks, self.limits = nn.ModuleList(list(model.blocks)), (small, moderate)  # type: ignore[arg-type]
        self.sigmas, self.calls, self.done = sigmas, 0, [list[str](), list[str]()]
        self.kept: list[list[tuple[float, torch.Tensor]]] = [[], []]
        self.account, self.row = [0.0, 0.0], [0, 0]
        self.before: list[torch.Tensor | None] = [None, None]
        self.now = torch.zeros(0)
        model.condition_embedder.register_forward_hook(self.see)  # type: ignore[union-attr]
        model.blocks = nn.ModuleList([self])

    def see(self, _: nn.Module, given: tuple[torch.Tensor, ...], made: tuple[torch.Tensor, ...]) -> None:
        self.now = made[1]

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        b, step, self.calls = self.calls % 2, self.calls // 2, self.calls + 1
        before = self.before[b]
        if step >= 5 and before is not None:
            self.account[b] += float((self.now - before).abs().mean() / before.abs().mean())
        self.before[b] = self.now
        if step < 5 or self.account[b] >= self.limits[1] or self.row[b] >= 2:
            out = h
            for block in self.blocks:
                out = block(out, *more)
            self.kept[b] = [*self.kept[b], (self.sigmas[step], out - h)]
            self.account[b], self.row[b] = 0.0, 0
            self.done[b].append("full")
            return out
        self.row[b] += 1
        (s1, r1), (s0, r0) = self.kept[b][-2:]
        if self.account[b] < self.limits[0]:
            self.done[b].append("reuse")
            return h + r0
        self.done[b].append("forecast")
        return h + r0 + (r0 - r1) * (self.sigmas[step] - s0) / (s0 - s1)
