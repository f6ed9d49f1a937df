"""Policies that look at the model's output, or that keep it, against their methods written out in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.runtime import snapshot
from mccompile.runtime.budget import Predictor
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.runtime.test_forecast import GRID, STEPS, call

Outputs = tuple[list[torch.Tensor], list[bool]]


def ours(
    model: WanTransformer3DModel, prepared: api.Prepared, policy: str | Source, **values: float
) -> tuple[list[torch.Tensor], CompiledModel]:
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(model, policy, backend="eager", captured=prepared, clock=clock, **values)
    found = []
    for clock.row in range(STEPS):
        found.append(made(**call(clock.row))[0])
    return found, made


def agree(found: list[torch.Tensor], made: CompiledModel, wanted: Outputs) -> None:
    assert [event.action == "full" for event in made.events] == wanted[1]
    for row, (a, b) in enumerate(zip(found, wanted[0], strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, r=row: f"row {r}: {m}")


class Gain:
    """EasyCache's k: how far the output moved at a computation, for how far the latent moved since the one before."""

    def __init__(self) -> None:
        self.k = float("nan")
        self.latent = self.output = torch.zeros(0)

    def computed(self, latent: torch.Tensor, output: torch.Tensor) -> None:
        if self.output.numel():
            self.k = float((output - self.output).abs().mean() / (latent - self.latent).abs().mean())
        self.latent, self.output = latent, output

    def change(self, moved: torch.Tensor) -> float:
        return self.k * float(moved.abs().mean() / self.output.abs().mean())


def easycache(model: WanTransformer3DModel, threshold: float, warmup: int) -> Outputs:
    """The loop of its code for one branch: changes are those of each step, the last step is computed."""
    made, computed = [], []
    gain, account, before, kept = Gain(), 0.0, torch.zeros(0), torch.zeros(0)
    for step in range(STEPS):
        latent = call(step)["hidden_states"]
        assert isinstance(latent, torch.Tensor)
        reuse = False
        if warmup <= step < STEPS - 1:
            account += gain.change(latent - before)
            reuse = account < threshold
        before = latent
        if reuse:
            made.append(latent + kept)
        else:
            made.append(model(**call(step))[0])
            gain.computed(latent, made[-1])
            account, kept = 0.0, made[-1] - latent
        computed.append(not reuse)
    return made, computed


def lazycache(model: WanTransformer3DModel, threshold: float, begin: float, finish: float) -> Outputs:
    """ComfyUI's loop: changes are those since the last computation; k is measured in the range of steps alone."""
    made, computed = [], []
    gain, account, kept, known = Gain(), 0.0, torch.zeros(0), False
    for step in range(STEPS):
        latent = call(step)["hidden_states"]
        assert isinstance(latent, torch.Tensor)
        within, reuse = begin <= step / STEPS < finish, False
        if within and known:
            account += gain.change(latent - gain.latent)
            reuse = account < threshold
        if reuse:
            made.append(latent + kept)
        else:
            made.append(model(**call(step))[0])
            gain.computed(latent, made[-1])
            account, kept, known = 0.0, made[-1] - latent, known or (within and step > 0)
        computed.append(not reuse)
    return made, computed


@pytest.mark.parametrize(("threshold", "warmup"), [(0.3, 3), (0.9, 2), (0.05, 1)])
def test_easycache(
    threshold: float, warmup: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    found, made = ours(small_wan, captured_wan, "easycache", threshold=threshold, warmup=warmup)
    with torch.no_grad():
        wanted = easycache(small_wan, threshold, warmup)
    agree(found, made, wanted)
    assert not all(wanted[1]) or threshold < 0.1


@pytest.mark.parametrize(("threshold", "finish"), [(0.1, 0.95), (0.4, 0.95), (1.0, 0.6)])
def test_lazycache(
    threshold: float, finish: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    found, made = ours(small_wan, captured_wan, "lazycache", threshold=threshold, finish=finish)
    with torch.no_grad():
        wanted = lazycache(small_wan, threshold, 0.15, finish)
    agree(found, made, wanted)
    assert not all(wanted[1]) or threshold < 0.4


def by_token(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, frames, height, width] as [tokens, numbers of a patch]."""
    return latents.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 2, 3, 4, 1, 5, 6).reshape(48, -1)


def test_ras(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Half of the tokens: those with the largest product of prediction and wait; the others keep their prediction."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(small_wan, "ras", backend="eager", captured=captured_wan, clock=clock, hunger=0.5)
    made.runner.masks = []
    waited, before = np.zeros(48, int), torch.zeros(0)
    for clock.row in range(STEPS):
        output = made(**call(clock.row))[0]
        mask = made.runner.masks[-1].reshape(48)
        if clock.row < 4:
            assert mask.all()
        else:
            score = by_token(before).square().mean(1).sqrt().numpy() * np.exp(0.5 * (waited + 1))
            assert set(np.flatnonzero(mask)) == set(np.argsort(-score, kind="stable")[:24])
            np.testing.assert_array_equal(by_token(output == before).all(1).numpy(), ~mask)
        waited, before = np.where(mask, 0, waited + 1), output
    assert {event.computed for event in made.events} == {48, 24}


KEEPS = """policy p {{
  phase all {{ {rule} }}
  layers model {{ keep {keep} }}
  {more}
}}
"""


@pytest.mark.parametrize("keep", ["residual", "output"])
@pytest.mark.parametrize("kept_as", ["residual: model", "residual: bfloat16", "device: cpu", "residual: float8"])
def test_what_is_kept_of_the_model(
    keep: str, kept_as: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """The last output, or the latent of the step and the last difference; and its bytes are foretold."""
    text = KEEPS.format(rule="compute every 3 steps", keep=keep, more=f"cache {{ {kept_as} }}")
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(small_wan, Source("p.policy", text), backend="eager", captured=captured_wan, clock=clock)
    rough = {"residual: bfloat16": 0.02, "residual: float8": 0.2}.get(kept_as, 1e-6)
    with torch.no_grad():
        for clock.row in range(6):
            now = call(clock.row)
            latent = now["hidden_states"]
            assert isinstance(latent, torch.Tensor)
            if clock.row % 3 == 0:
                wanted = small_wan(**now)[0]
                kept = wanted - latent if keep == "residual" else wanted
                torch.testing.assert_close(made(**now)[0], wanted, rtol=1e-4, atol=1e-5)
            else:
                wanted = latent + kept if keep == "residual" else kept
                torch.testing.assert_close(made(**now)[0], wanted, rtol=rough, atol=rough)
    (store,) = made.runner.requests["request"].branches.values()
    predicted = Predictor(made.runner.lowered, made.runner.bound)
    found = predicted.count(predicted.store(call(0), predicted.moment(call(0), call(0))), predicted.cache)
    assert found.total == store.nbytes()
    assert store.memory.outputs is not None
    assert found.residuals == store.memory.outputs.nbytes


def test_a_run_goes_on_from_a_snapshot(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """What is kept of the model, and the outputs that rules look back at, go with it."""
    whole, _ = ours(small_wan, captured_wan, "easycache", threshold=0.9, warmup=2)
    runs = []
    for _ in range(2):
        clock = Timeline("request", GRID, steps_in_order(GRID))
        values = {"threshold": 0.9, "warmup": 2}
        made = api.compile(small_wan, "easycache", backend="eager", captured=captured_wan, clock=clock, **values)
        runs.append((made, clock))
    (first, clock), (second, later) = runs
    for clock.row in range(4):
        first(**call(clock.row))
    clock.row = later.row = 4
    (branch,) = first.runner.requests["request"].branches
    moment = clock.moment(branch, call(4))
    taken = snapshot.take(first.runner, moment)
    assert taken is not None
    snapshot.restore(second.runner, moment, taken, torch.device("cpu"))
    for later.row in range(4, STEPS):
        torch.testing.assert_close(second(**call(later.row))[0], whole[later.row])
    assert [e.action for e in first.events + second.events].count("reuse") > 2


def test_an_output_of_the_step_is_not_known(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Where nothing was kept, values of earlier outputs are no numbers, so the step is computed."""
    rule = "reuse step while l1(kept(output), before(output), over = step) < 100.0"
    text = KEEPS.format(rule=rule, keep="output", more="")
    found, made = ours(small_wan, captured_wan, Source("p.policy", text))  # type: ignore[arg-type]
    assert [event.action for event in made.events] == ["full", *["reuse"] * (STEPS - 1)]
    assert all(torch.equal(found[0], later) for later in found)


def frequencies(x: torch.Tensor, gain: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """[F, H, W, C] filtered by a product of gains along each axis, of mean 1, by Fourier transforms."""
    spectrum = torch.fft.fftn(x.double(), dim=(0, 1, 2))
    whole = torch.ones(1, 1, 1, 1, dtype=torch.double)
    for axis in range(3):
        sizes = [x.shape[axis] if a == axis else 1 for a in range(4)]
        whole = whole * gain(torch.fft.fftfreq(x.shape[axis], dtype=torch.double).abs()).reshape(sizes)
    return torch.fft.ifftn(spectrum * (whole / whole.mean()), dim=(0, 1, 2)).real


def wiener(sigma: float, power: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """a S / (a^2 S + b^2) for the signal's power S = 1 / f^power, a = 1 - sigma and b = sigma."""
    b = min(max(sigma, 1e-6), 1 - 1e-6)

    def gain(f: torch.Tensor) -> torch.Tensor:
        signal = 1 / (f**power + 1e-16)
        return (1 - b) * signal / ((1 - b) ** 2 * signal + b**2 + 1e-16)

    return gain


def seacache(model: WanTransformer3DModel, threshold: float, power: float, forecasts: bool = False) -> Outputs:
    """Its code for one branch, but for the first comparison, whose earlier side the code leaves unfiltered.

    forecasts: the variant that filters latents, goes on along the last two residuals, and reuses two steps in a row.
    """
    made, computed = [], []
    account, before, kept = 0.0, torch.zeros(0), torch.zeros(0)
    history: list[tuple[int, torch.Tensor]] = []
    entered: list[torch.Tensor] = []
    modulated: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda _, given: entered.append(given[0])),
        model.blocks[0].attn1.register_forward_pre_hook(lambda _, given: modulated.append(given[0])),
        model.blocks[-1].register_forward_hook(lambda _, __, out: left.append(out)),
    ]
    for step in range(STEPS):
        output = model(**call(step))[0]
        looked_at = by_token(call(step)["hidden_states"]) if forecasts else modulated[-1]  # type: ignore[arg-type]
        now = frequencies(looked_at.reshape(3, 4, 4, -1), wiener(GRID.sigmas[step], power))
        reuse = False
        if 0 < step < STEPS - 1:
            account += float((now - before).abs().mean() / before.abs().mean())
            reuse = account < threshold and not (forecasts and computed[-2:] == [False, False])
        before = now
        if reuse:
            if forecasts and len(history) > 1:
                (s1, r1), (s0, r0) = history[-2:]
                kept = r0 + (r0 - r1) * ((step - s0) / (s0 - s1))
            last = model.blocks[-1].register_forward_hook(lambda *_: entered[-1] + kept)  # noqa: B023
            output = model(**call(step))[0]
            last.remove()
        else:
            account, kept = 0.0, left[-1] - entered[-1]
            history.append((step, kept))
        made.append(output)
        computed.append(not reuse)
    for hook in hooks:
        hook.remove()
    return made, computed


@pytest.mark.parametrize(("threshold", "power"), [(0.1, 3), (0.3, 3), (0.3, 2), (0.9, 1)])
def test_seacache(
    threshold: float, power: int, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    found, made = ours(small_wan, captured_wan, "seacache", threshold=threshold, power=power)
    with torch.no_grad():
        wanted = seacache(small_wan, threshold, power)
    agree(found, made, wanted)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 2.0])
def test_seacache_taylor(threshold: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    found, made = ours(small_wan, captured_wan, "seacache_taylor", threshold=threshold)
    with torch.no_grad():
        wanted = seacache(small_wan, threshold, 3, forecasts=True)
    agree(found, made, wanted)
    assert not all(wanted[1])
