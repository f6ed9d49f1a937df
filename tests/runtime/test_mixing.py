"""Policies per token on a model whose blocks mix tokens by a convolution: what is computed over all of them is kept."""

from __future__ import annotations

import pytest
import torch

from mccompile import api
from mccompile.diagnostics.source import Source
from mccompile.generate.doctor import findings
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from tests.model_table import GRID, STEPS, TOKENS
from tests.zoo import zoo

FAMILY = zoo("toy_convolution")


@pytest.fixture(scope="module")
def prepared() -> api.Prepared:
    probe, second = (FAMILY.call(size, 1, torch.float32) for size in FAMILY.sizes[:2])
    return api.prepare(FAMILY.model(torch.float32), probe=probe, second=second)


def run(prepared: api.Prepared, part: float, kept: str, samples: int = 1) -> tuple[CompiledModel, list[float]]:
    """A few steps on selected tokens, and the distance of each from the model's own output."""
    model = FAMILY.model(torch.float32)
    clock = Timeline("run", GRID, steps_in_order(GRID))
    policy = Source("test.policy", TOKENS.replace("}\n}", f"}}\n  cache {{ dtype: {kept} }}\n}}"))
    compiled = api.compile(model, policy, captured=prepared, clock=clock, backend="eager", verify=True, part=part)
    first, off = FAMILY.call(FAMILY.sizes[2], samples, torch.float32), []
    for clock.row in range(STEPS):
        call = first | {"latent": FAMILY.call(FAMILY.sizes[2], samples, torch.float32, clock.row)["latent"]}
        with torch.no_grad():
            wanted = model(**call)
            off.append(float((compiled(**call) - wanted).abs().max() / wanted.abs().max()))
    return compiled, off


@pytest.mark.parametrize("samples", [1, 2])
def test_all_tokens_one_by_one_give_the_models_output(prepared: api.Prepared, samples: int) -> None:
    compiled, off = run(prepared, 1.0, "model", samples)
    assert compiled.runner.engine.uses_rows
    assert {event.action for event in compiled.events} == {"full"}
    assert max(off) < 1e-5


@pytest.mark.parametrize(("kept", "bound"), [("bfloat16", 0.02), ("float8", 0.1)])
def test_what_is_kept_whole_is_kept_in_the_dtype_of_the_policy(
    prepared: api.Prepared, kept: str, bound: float
) -> None:
    compiled, off = run(prepared, 0.4, kept)
    exact = run(prepared, 0.4, "model")[1]
    assert {event.action for event in compiled.events} == {"full", "partial"}
    assert max(off[1:]) > 0.01  # stale tokens are seen: the policy is one of approximations
    assert 0 < max(abs(a - b) for a, b in zip(off, exact, strict=True)) < bound


def test_doctor_tells_what_is_computed_over_all_tokens(prepared: api.Prepared) -> None:
    said = dict(findings(prepared.model))
    assert said["rows"] == "any tokens of every block"
    assert said["over all tokens"].startswith("layers.0.local: mixes tokens: a convolution over the token axis")
