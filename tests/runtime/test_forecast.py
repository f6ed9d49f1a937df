"""What stands in for kept results, against the published methods written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.source import Source
from mccompile.policy.phases import Grid
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.forecast import Weights

STEPS = 9
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS))
GRID = Grid(STEPS, tuple(1000 * s for s in SIGMAS), SIGMAS)
Kept = Sequence[tuple[int, torch.Tensor]]  # (step, residual) of each computation, the first one first
Predict = Callable[[int, Kept], torch.Tensor]


def call(row: int, text: int = 0, frames: int = 3, height: int = 8, width: int = 8) -> dict[str, object]:
    """Latents that move smoothly from row to row."""
    start, end, words = (torch.Generator().manual_seed(s) for s in (1, 2, 100 + text))
    shape = (1, 4, frames, height, width)
    moved = torch.randn(shape, generator=start) + row / STEPS * torch.randn(shape, generator=end)
    return {
        "hidden_states": moved,
        "timestep": torch.tensor([GRID.timesteps[row % STEPS]]),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=words),
        "return_dict": False,
    }


def policy(stand_in: str, rule: str = "compute every 3 steps", warmup: int = 3, more: str = "") -> str:
    return f"""policy p {{
  {more}
  phase first for {warmup} steps {{ compute }}
  phase cycle {{ {rule} }}
  layers blocks[*] {{ keep residual  reuse as {stand_in} }}
}}
"""


def compiled(
    model: nn.Module, prepared: api.Prepared, text: str, fold: bool = True
) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(model, Source("p.policy", text), backend="eager", captured=prepared, clock=clock, fold=fold)
    return made, clock


class Plain(nn.Module):
    """All blocks in one, by hand: computed at some steps, and predicted from the kept residuals at the others."""

    def __init__(self, blocks: Sequence[nn.Module], computes: Callable[[int], bool], predict: Predict) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.computes, self.predict, self.kept = computes, predict, list[tuple[int, torch.Tensor]]()
        self.step = 0

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        if not self.computes(self.step):
            return h + self.predict(self.step, self.kept)
        out = h
        for block in self.blocks:
            out = block(out, *more)
        self.kept.append((self.step, out - h))
        return out


def taylor(order: int) -> Predict:
    """TaylorSeer's code: each derivative from the one below, now and at the computation before."""

    def predict(step: int, kept: Kept) -> torch.Tensor:
        derivatives: list[torch.Tensor] = []
        for i, (at, value) in enumerate(kept):
            fresh = [value]
            for k in range(min(order, len(derivatives))):
                fresh.append((fresh[k] - derivatives[k]) / (at - kept[i - 1][0]))
            derivatives = fresh
        ahead = step - kept[-1][0]
        return sum(d * ahead**k / factorial(k) for k, d in enumerate(derivatives))  # type: ignore[return-value]

    return predict


def hicache(step: int, kept: Kept) -> torch.Tensor:
    """HiCache's code: TaylorSeer's derivatives, each under H_k(s e) s^k / k! of the e steps since, with s = 0.5."""
    if len(kept) < 3:
        return kept[-1][1]
    (s2, r2), (s1, r1), (s0, r0) = kept[-3:]
    first, before = (r0 - r1) / (s0 - s1), (r1 - r2) / (s1 - s2)
    second, x = (first - before) / (s0 - s1), 0.5 * (step - s0)
    hermite = [1.0, 2 * x]
    hermite.append(2 * x * hermite[1] - 2 * hermite[0])
    return r0 + first * hermite[1] * 0.5 + second * hermite[2] / 2 * 0.5**2


def abcache(step: int, kept: Kept) -> torch.Tensor:
    return 1.5 * kept[-1][1] - 0.5 * kept[-2][1] if len(kept) > 1 else kept[-1][1]


def along_sigma(step: int, kept: Kept) -> torch.Tensor:
    if len(kept) < 2:
        return kept[-1][1]
    (s1, r1), (s0, r0) = kept[-2:]
    return r0 + (r0 - r1) * (SIGMAS[step] - SIGMAS[s0]) / (SIGMAS[s0] - SIGMAS[s1])


def halfway(step: int, kept: Kept) -> torch.Tensor:
    return (taylor(1)(step, kept) + kept[-1][1]) / 2


def chebyshev(over: int, degree: int = 4, ridge: float = 0.1) -> Predict:
    """Spectrum's code: a series in T_0 .. T_degree, fitted to the results by least squares with a penalty.

    It maps steps to -1..1 as if a run had 50; here a run has `STEPS`.
    """

    def terms(steps: Sequence[int]) -> torch.Tensor:
        place = (torch.tensor(steps, dtype=torch.float64).reshape(-1, 1) - STEPS / 2) * 2 / STEPS
        columns = [torch.ones_like(place), place]
        while len(columns) <= degree:
            columns.append(2 * place * columns[-1] - columns[-2])
        return torch.cat(columns[: degree + 1], 1)

    def predict(step: int, kept: Kept) -> torch.Tensor:
        kept = kept[-over:]
        if len(kept) < 2:
            return kept[-1][1]
        design = terms([at for at, _ in kept])
        values = torch.stack([value.flatten().double() for _, value in kept])
        factor = torch.linalg.cholesky(design.T @ design + ridge * torch.eye(degree + 1, dtype=torch.float64))
        fitted = torch.cholesky_solve(design.T @ values, factor)
        return (terms([step]) @ fitted).reshape(kept[-1][1].shape).float()

    return predict


def spectrum(step: int, kept: Kept) -> torch.Tensor:
    """Half of the series, half of the line through the last two results, as its code recommends."""
    return 0.5 * chebyshev(14)(step, kept) + 0.5 * taylor(1)(step, kept)


METHODS: dict[str, Predict] = {
    "chebyshev(residual)": chebyshev(8),
    "chebyshev(residual, degree = 2, ridge = 0.01, over = 3)": chebyshev(3, 2, 0.01),
    "taylor(residual)": taylor(1),
    "taylor(residual, order = 2)": taylor(2),
    "residual | taylor(order = 3)": taylor(3),
    "taylor(residual, along = sigma)": along_sigma,
    "1.5 * kept(residual) - kept(residual, 2) / 2": abcache,
    "(taylor(residual) + kept(residual)) * 0.5": halfway,
    "kept(residual) + (sigma - kept(sigma)) / (kept(sigma) - kept(sigma, 2)) * (kept(residual) - kept(residual, 2))":
        along_sigma,
}  # fmt: skip


def outputs(made: CompiledModel, clock: Timeline, rows: Sequence[int], text: int = 0) -> list[torch.Tensor]:
    found = []
    for row in rows:
        clock.row = row
        found.append(made(**call(row, text))[0])
    return found


def by_hand(model: WanTransformer3DModel, plain: Plain, rows: Sequence[int], text: int = 0) -> list[torch.Tensor]:
    own, found = model.blocks, []
    model.blocks = nn.ModuleList([plain])
    try:
        for row in rows:
            plain.step = row
            found.append(model(**call(row, text))[0])
    finally:
        model.blocks = own
    return found


CASES = [*((method, 1) for method in METHODS), ("taylor(residual, order = 2)", 4)]


@pytest.mark.parametrize(("stand_in", "warmup"), CASES)
def test_a_forecast_is_that_of_the_method(
    stand_in: str, warmup: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """With one computed step at first, fewer results are kept than are asked for."""
    made, clock = compiled(small_wan, captured_wan, policy(stand_in, warmup=warmup))
    rows = range(STEPS)
    plain = Plain(list(small_wan.blocks), lambda s: s < warmup or (s - warmup) % 3 == 0, METHODS[stand_in])
    for row, (ours, theirs) in enumerate(zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    assert len(plain.kept) < STEPS


def test_hicache_is_that_of_its_code(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """The shipped policy, its interval set to 3."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(small_wan, "hicache", backend="eager", captured=captured_wan, clock=clock, interval=3)
    rows = range(STEPS)
    plain = Plain(list(small_wan.blocks), lambda s: s < 3 or s % 3 == 0, hicache)
    for row, (ours, theirs) in enumerate(zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    assert len(plain.kept) < STEPS


class PlainOutput(Plain):
    """The same where the blocks' output is kept."""

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        if not self.computes(self.step):
            return self.predict(self.step, self.kept)
        for block in self.blocks:
            h = block(h, *more)
        self.kept.append((self.step, h))
        return h


def test_spectrum_is_that_of_its_code(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """The shipped policy: its schedule is that of a window that grows, and its forecast that of the code."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(small_wan, "spectrum", backend="eager", captured=captured_wan, clock=clock, blend=0.5)
    rows = range(STEPS)
    plain = PlainOutput(list(small_wan.blocks), lambda s: s < 5 or s in (6, 8), spectrum)
    for row, (ours, theirs) in enumerate(zip(outputs(made, clock, rows), by_hand(small_wan, plain, rows), strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")
    assert len(plain.kept) == 7


def test_another_prompt_begins_anew(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Results of the first prompt take no part in a forecast for the second."""
    made, clock = compiled(small_wan, captured_wan, policy("taylor(residual, order = 2)", warmup=3))
    plain = Plain(list(small_wan.blocks), lambda s: s < 3 or s == 4, taylor(2))
    assert len(outputs(made, clock, range(4))) == len(by_hand(small_wan, plain, range(4)))
    plain.kept.clear()
    rows = range(4, 6)
    for ours, theirs in zip(outputs(made, clock, rows, text=1), by_hand(small_wan, plain, rows, text=1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [e.why for e in made.events][4] == "another prompt"


def test_each_token_is_forecast_from_its_own_computations(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    signal = "signal moved = rel_l1(latent, over = token)"
    rule = "reuse token while accumulate(moved) < 0.2"
    made, clock = compiled(small_wan, captured_wan, policy("taylor(residual, order = 2)", rule, 2, signal))
    runner = made.runner
    (pair,) = runner.lowered.regions[0].pairs
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    run, runner.masks = runner.engine.postlude.run, []

    def watched(env, *more):  # type: ignore[no-untyped-def]
        seen.append((env[pair[0]].clone(), env[pair[1]].clone()))
        return run(env, *more)

    runner.engine.postlude.run = watched  # type: ignore[method-assign]
    outputs(made, clock, range(STEPS))
    tokens = seen[0][0].size(1)
    kept: list[list[tuple[int, torch.Tensor]]] = [[] for _ in range(tokens)]
    different = set()
    for row, ((before, after), mask) in enumerate(zip(seen, runner.masks, strict=True)):
        for token, computed in enumerate(mask.reshape(-1)):
            if computed:
                kept[token].append((row, after[0, token] - before[0, token]))
            else:
                expected = before[0, token] + taylor(2)(row, kept[token])
                torch.testing.assert_close(after[0, token], expected, rtol=1e-4, atol=1e-5)
                different.add(tuple(step for step, _ in kept[token][-3:]))
    assert len(different) > 5


def test_weights_that_all_tokens_share_are_numbers() -> None:
    kept = [torch.ones(2, 3, 4), torch.full((2, 3, 4), 5.0)]
    assert Weights((1.0, 0.0)).plain
    assert not Weights((1.0, np.zeros((2, 3), np.float32))).plain
    assert Weights((2.0, -1.0)).sum(kept, 1).eq(-3).all()
    apart = Weights((1.0, np.arange(6, dtype=np.float32).reshape(2, 3))).sum(kept, 1)
    assert apart[:, :, 0].tolist() == [[1, 6, 11], [16, 21, 26]]


def assert_residuals_are_predicted(made: CompiledModel, each: int) -> None:
    """After a run: the bytes of its store are those that were predicted, with `each` residuals of a region."""
    (request,) = made.runner.requests.values()
    store = next(iter(request.branches.values()))
    predicted = Predictor(made.runner.lowered, made.runner.bound)
    moment = predicted.moment(call(0), call(0))
    found = predicted.count(predicted.store(call(0), moment), predicted.cache)
    assert found.total == store.nbytes()
    assert found.residuals == each * next(iter(store.memory.kept.values())).nbytes


@pytest.mark.parametrize("rule", ["compute every 3 steps", "reuse token while rel_l1(latent, over = token) < 0.1"])
def test_what_a_forecast_keeps_is_predicted(
    rule: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    made, clock = compiled(small_wan, captured_wan, policy("taylor(residual, order = 2)", rule))
    outputs(made, clock, range(4))
    assert_residuals_are_predicted(made, 3)


def test_a_forecast_without_a_value_is_refused(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Before the first step where the clock settles it, and at the step itself where nothing is folded."""
    text = policy("kept(residual) / (3 - step)", warmup=1)
    made, clock = compiled(small_wan, captured_wan, text)
    with pytest.raises(PolicyError, match="has no value at step 3"):
        outputs(made, clock, range(1))
    made.undo()
    made, clock = compiled(small_wan, captured_wan, text, fold=False)
    with pytest.raises(NoForecast, match="at step 3 its weights are inf"):
        outputs(made, clock, range(STEPS))
