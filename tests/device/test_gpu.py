"""What only a GPU can show: `pytest -m gpu`. The generations of test_device.py, where kernels are real.

Numbers are those of the CPU within bounds, and torch raises where a call makes the host wait for more than an event.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import mccompile.api
from mccompile.diagnostics.source import Source
from mccompile.generate.recording import read_recording, rules_of
from mccompile.generate.replay import (
    build_model,
    compile_recorded,
    policy_text,
    prepare_recorded,
    replay,
    verdict,
)
from mccompile.language.load import load_policy
from mccompile.runtime.compiled import CompiledModel
from tests.device.test_device import POLICIES, SIZE
from tests.runtime.conftest import Tiny, embeds, pipeline

pytestmark = pytest.mark.gpu
SURE = ("compute", "exact", "steps")  # their decisions rest on no rounding
PARITY = Path(__file__).parents[1] / "data" / "parity"
FIRST = 2  # calls that make masks and plans, one of each branch


@dataclass(frozen=True)
class There:
    """The tiny pipeline on a device, captured there, and its video without mccompile."""

    tiny: Tiny
    plain: torch.Tensor

    def compiled(self, name: str, backend: str) -> CompiledModel:
        policy, parameters = POLICIES[name]
        text = Source("gpu.policy", policy) if "{" in policy else policy
        return mccompile.api.compile(
            self.tiny.pipe, text, captured=self.tiny.captured, backend=backend, **parameters  # type: ignore[arg-type]
        )


def there(device: torch.device, dtype: torch.dtype) -> There:
    pipe = pipeline()
    pipe.transformer.to(device, dtype)
    call = {n: v.to(device, dtype) if isinstance(v, torch.Tensor) else v for n, v in embeds().items()}
    tiny = Tiny(pipe, call, mccompile.api.prepare(pipe, call=call))
    return There(tiny, tiny.run(**SIZE))


@pytest.fixture(scope="module")
def single() -> Iterator[There]:
    """In float32, every product in full precision."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield there(torch.device("cuda", 0), torch.float32)
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def half() -> There:
    return there(torch.device("cuda", 0), torch.bfloat16)


@contextlib.contextmanager
def no_waits(model: CompiledModel) -> Iterator[None]:
    """Inside, a call raises where it drains the stream, copies to the host and waits, or reads a value."""
    call, calls = model.runner.call, [0]

    def watched(inputs, moment):  # type: ignore[no-untyped-def]
        calls[0] += 1
        torch.cuda.set_sync_debug_mode("error" if calls[0] > FIRST else "default")
        try:
            return call(inputs, moment)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model.runner.call = watched  # type: ignore[method-assign]
    yield
    assert calls[0] > FIRST


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_generation(single: There, name: str, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """Vanilla's video where all is computed; staging, float8 and both branches in one forward are among the rest."""
    model = single.compiled(name, backend)
    assert "is no package" not in caplog.text
    try:
        with contextlib.nullcontext() if name == "on the host" else no_waits(model):
            video = single.tiny.run(**SIZE)
    finally:
        model.undo()
    assert video.isfinite().all()
    if name in SURE:
        torch.testing.assert_close(video, single.plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SURE)
def test_bfloat16_is_near_vanilla(half: There, name: str) -> None:
    model = half.compiled(name, "inductor")
    try:
        video = half.tiny.run(**SIZE)
    finally:
        model.undo()
    error = (video - half.plain).float().norm() / half.plain.float().norm()
    assert error < 0.05


@pytest.mark.parametrize("name", ["token_distance", "tokens_fine", "vbench_defaults"])
def test_a_recorded_trace(name: str) -> None:
    check_trace(name, torch.device("cuda", 0))


def check_trace(name: str, device: torch.device) -> None:
    """The tokens that the official code computed, and its outputs, on a device."""
    here = read_recording(PARITY / f"{name}.safetensors")
    recording = replace(
        here, latents=here.latents.to(device), timesteps=here.timesteps.to(device),
        contexts={b: v.to(device) for b, v in here.contexts.items()},
        outputs={b: v.to(device) for b, v in here.outputs.items()},
    )  # fmt: skip
    model = build_model(here).to(device)
    captured = prepare_recorded(recording, model)
    text = policy_text(rules_of(here), here.frames)
    compiled, clock = compile_recorded(recording, model, captured, load_policy(Source.of_text(text)), {})
    assert verdict(list(replay(recording, compiled, clock))).passed


def test_another_device_than_the_current_one() -> None:
    """On `cuda:1`, while `cuda:0` is the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    other = there(torch.device("cuda", 1), torch.float32)
    model = other.compiled("exact", "inductor")
    try:
        video = other.tiny.run(**SIZE)
    finally:
        model.undo()
    torch.testing.assert_close(video, other.plain, rtol=1e-3, atol=1e-3)
