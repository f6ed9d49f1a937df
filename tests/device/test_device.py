"""The runtime on a simulated GPU: the numbers of the CPU, two declared waits in a call, no more launches than recorded.

A call waits for the mask of its decision, and for whether the last results of its branch were finite. The copies of
both were queued when an earlier call ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mccompile.api
from mccompile.diagnostics.source import Source
from tests.device.moving import moved
from tests.device.simulated import SimulatedDevice, Wait
from tests.device.tensor import CUDA, memory_of, on_device
from tests.runtime.conftest import Tiny

BUDGETS = Path(__file__).parent / "launches.json"
TOP = """policy top {{
  param part = 40% in 0%..100%
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 2 steps {{ compute }}
  phase fine               {{ compute top part of tokens by motion }}
  layers blocks[*] {{ keep residual }}
  {more}
}}
"""
POLICIES: dict[str, tuple[str, dict[str, float]]] = {
    "compute": ("compute", {}),
    "exact": ("exact", {}),
    "tokens": ("motioncache", {"threshold": 0.3, "warmup": 1, "updates": 0}),
    "steps": ("teacache", {}),
    "probe": ("fbcache", {"threshold": 0.5}),
    "top": (TOP.format(more=""), {}),
    "both branches": (TOP.format(more="branches { share decision of cond  batch }"), {}),
    "forecast": (TOP.replace("keep residual", "keep residual  reuse as taylor(residual)").format(more=""), {}),
    "merged": ("merge", {}),
    "on the host": (TOP.format(more="cache { device: cpu  dtype: float8 }"), {}),
}
SIZE: dict[str, object] = {"num_frames": 13, "num_inference_steps": 5, "ar_step": 2}  # 2 chunks, 14 calls of 2 branches
WHOLE = 48  # tokens of both chunks
ALLOWED = {"on the host": 8}  # rows of two tensors in three blocks and the residual come back, and one of before


@dataclass
class Seen:
    """What one generation cost. waits, launches: of each call of the transformer. attended: as in SimulatedDevice."""

    video: torch.Tensor
    waits: list[list[Wait]] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)
    attended: list[tuple[int, bool]] = field(default_factory=list)


def generated(tiny: Tiny, name: str, size: dict[str, object] = SIZE) -> torch.Tensor:
    policy, parameters = POLICIES.get(name, (name, {}))
    model = _compiled(tiny, policy, parameters)
    try:
        return tiny.run(**size)
    finally:
        model.undo()


def _compiled(tiny: Tiny, policy: str, parameters: dict[str, float]) -> mccompile.api.CompiledModel:
    text = Source("device.policy", policy) if "{" in policy else policy
    return mccompile.api.compile(tiny.pipe, text, captured=tiny.captured, backend="eager", **parameters)


def on_the_device(tiny: Tiny, name: str, size: dict[str, object] = SIZE) -> Seen:
    """name: of one of the policies, or the text of another."""
    assert tiny.captured is not None
    policy, parameters = POLICIES.get(name, (name, {}))
    with moved(tiny.pipe.transformer, tiny.captured) as (moving, captured), SimulatedDevice() as device:
        there = replace(tiny, captured=captured, call={k: moving.value(v) for k, v in tiny.call.items()})
        model = _compiled(there, policy, parameters)
        seen, call = Seen(torch.zeros(0), attended=device.attended), model.runner.call

        def counted(inputs, moment):  # type: ignore[no-untyped-def]
            launches, waits = device.launches, len(device.waits)
            result = call(inputs, moment)
            seen.launches.append(device.launches - launches)
            seen.waits.append(device.waits[waits:])
            return result

        model.runner.call = counted  # type: ignore[method-assign]
        try:
            seen.video = memory_of(there.run(**size))
        finally:
            model.undo()
    return seen


@pytest.mark.parametrize("name", POLICIES)
def test_a_generation_on_the_device(tiny: Tiny, name: str, update_golden: bool) -> None:
    """Once the first call of each branch has made masks and plans, a call waits for nothing that it queues itself."""
    wanted, seen = generated(tiny, name), on_the_device(tiny, name)
    near = 1e-3 if "float8" in POLICIES[name][0] else 1e-5  # a last bit may round to the next of float8's numbers
    torch.testing.assert_close(seen.video, wanted, rtol=near, atol=near)
    assert {type(p) for p in tiny.pipe.transformer.parameters()} == {torch.nn.Parameter}  # on the CPU again
    for waits in seen.waits[2:]:
        assert [w for w in waits if w.kind != "event"] == []
        declared = ("runtime/finite.py", "runtime/decision.py")
        assert len([w for w in waits if w.place.startswith(declared)]) <= (4 if name == "both branches" else 2)
        assert len([w for w in waits if not w.place.startswith(declared)]) <= ALLOWED.get(name, 0)
    assert bool(seen.attended) == (name != "compute")
    for rows, cudnn in seen.attended:  # it would plan anew for every number of rows
        assert cudnn == (rows == WHOLE)
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    spent = {"median": int(np.median(seen.launches)), "most": max(seen.launches)}
    if update_golden:
        BUDGETS.write_text(json.dumps(budgets | {name: spent}, indent=2) + "\n")
    else:
        assert spent["median"] <= budgets[name]["median"]
        assert spent["most"] <= budgets[name]["most"]


@pytest.mark.parametrize("where", ["", "device: cpu"])
def test_keys_are_picked_on_the_device(tiny: Tiny, where: str) -> None:
    """Four chunks, the last two of which pick keys of those before: nothing of it waits for the device."""
    policy = TOP.format(more=f"cache {{ window: 1 chunks  keys: top 1 chunks by attention(key)  {where} }}")
    size = SIZE | {"num_frames": 29}
    wanted, seen = generated(tiny, policy, size), on_the_device(tiny, policy, size)
    torch.testing.assert_close(seen.video, wanted, rtol=1e-5, atol=1e-5)
    for waits in seen.waits[2:]:
        assert [w for w in waits if w.kind != "event"] == []
        declared = ("runtime/finite.py", "runtime/decision.py", *(("runtime/staging.py",) if where else ()))
        assert [w for w in waits if not w.place.startswith(declared)] == []


# ---- the simulation itself
@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as simulated:
        yield simulated


def test_tensors_of_two_devices_do_not_meet(device: SimulatedDevice) -> None:
    with pytest.raises(RuntimeError, match="at least two devices"):
        on_device(torch.ones(3)) + torch.ones(3)
    with pytest.raises(TypeError, match="to numpy"):
        on_device(torch.ones(3)).numpy()
    assert (on_device(torch.ones(3)) + torch.tensor(1.0)).device == CUDA  # a number may come from the host


def test_every_way_to_wait_is_noted(device: SimulatedDevice) -> None:
    there = on_device(torch.arange(4.0))
    float(there[0])
    there.cpu()
    torch.ones(3).to(CUDA)
    torch.ones(3).to(CUDA, non_blocking=True)
    there[torch.tensor([True, False, True, False])]
    torch.equal(there, there)
    torch.cuda.synchronize()
    kinds = [w.kind for w in device.waits]
    assert kinds == ["read", "download", "upload", "pageable", "read", "read", "stream"]


def test_copies_out_of_pinned_memory_wait_for_nothing(device: SimulatedDevice) -> None:
    pinned = torch.empty(3, pin_memory=True)
    pinned.to(CUDA, non_blocking=True)
    pinned.copy_(on_device(torch.ones(3)), non_blocking=True)
    assert pinned.tolist() == [1, 1, 1]
    assert device.waits == []


def test_views_launch_nothing(device: SimulatedDevice) -> None:
    there = on_device(torch.ones(2, 3))
    there.t().unsqueeze(0).expand(4, 3, 2)
    assert device.launches == 0
    there.add_(1)
    assert device.launches == 1
    assert there.memory.sum() == 12
