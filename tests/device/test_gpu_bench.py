"""`bench gpu` on the simulated GPU, stage by stage, and the process that runs its stages until their deadlines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mccompile.cli import main
from mccompile.generate.flops import prices_of
from mccompile.runtime.blocks import eager
from mccompile.studio.bench.gpu import published, steps
from mccompile.studio.bench.gpu.driver import run
from mccompile.studio.bench.gpu.machine import SMALL, Machine, MadeModel
from mccompile.studio.bench.gpu.stages import STAGES, TOTAL, GpuStage
from mccompile.studio.bench.gpu.work import Workshop
from mccompile.studio.bench.report import Row
from mccompile.studio.bench.rig import InTurn
from mccompile.studio.bench.subjects import all_active
from tests.device.moving import moved
from tests.device.simulated import SimulatedDevice
from tests.device.tensor import CUDA
from tests.runtime.conftest import Tiny

REHEARSED = ("facts", "attention", "tests", "ladder", "profile", "motioncache", "peers")
SHARES = (0.25, 1.0)


def call() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 4, 4, 6, 8, generator=generator), "timestep": torch.full((1, 4), 500),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=generator), "enable_diffusion_forcing": True,
        "fps": [1], "return_dict": False,
    }  # fmt: skip


@pytest.fixture
def workshop(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """The stages on a device that holds the tiny transformer, whichever model they ask for."""
    assert tiny.captured is not None
    here = InTurn(tiny.pipe.transformer, tiny.captured, call(), all_active(2), eager).take(steps.BASES[0])
    prices = prices_of(here.model, here.call)
    monkeypatch.setattr(steps, "prices_of", lambda *_: prices)  # counted on tensors that torch fakes
    with moved(tiny.pipe.transformer, tiny.captured) as (moving, captured), SimulatedDevice():
        made = MadeModel(tiny.pipe.transformer, {n: moving.value(v) for n, v in call().items()}, captured)
        two = replace(SMALL.subject, chunks=2, frames=2, height=3, width=4)
        scale = replace(SMALL, subject=two, shares=SHARES, tests=("--version",))
        yield Workshop(Machine(CUDA, torch.float32, "eager", scale, lambda subject, captured: made))


def test_every_stage_runs_on_the_simulated_device(workshop: Workshop) -> None:
    """All but those that need other models: MAGI-1 and whole generations. `--rehearse` has them on the CPU."""
    told: dict[str, list[Row]] = {}
    for stage in REHEARSED:
        told[stage] = []
        workshop.run(stage, told, told[stage].append)
        json.dumps(told[stage])
    assert {s.name for s in STAGES} == {*REHEARSED, "magi", "embedded"}
    refused = {r["name"] for r in told["attention"] if "refused" in r}
    assert refused == {"cudnn", "efficient"}  # the CPU behind the device has no such kernels
    shares = {r["name"]: r["tokens"] for r in told["ladder"] if r["kind"] == "shares of the tokens"}
    assert shares == {f"{s:.0%} of tokens": pytest.approx(s) for s in SHARES}
    assert [r["published"] for r in told["motioncache"] if "published" in r] == [6.28, 7.26]
    assert told["tests"][-1] == {"name": "pytest", "code": 0}
    assert [r for r in told["peers"] if "error" in r] == []


# ---- the process and its deadlines
WORKER = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)
    print(json.dumps({"row": {"earlier": sorted(job["earlier"])}}), flush=True)
    if job["stage"] == "slow":
        time.sleep(60)
    if job["stage"] == "crash":
        sys.exit("RuntimeError: CUDA error: an illegal memory access was encountered")
    print(json.dumps({}), flush=True)
"""
COMMAND = (sys.executable, "-c", WORKER)


def test_a_stage_that_fails_tells_what_it_found_and_the_next_one_runs() -> None:
    stages = [GpuStage(name, 30, "") for name in ("one", "crash", "slow", "last")]
    stages[2] = replace(stages[2], seconds=0.5)
    lines = list(run(COMMAND, stages))
    assert [(x["stage"], x.get("error")) for x in lines] == [
        ("one", None), ("crash", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ("slow", "it ran past its deadline"), ("last", None),
    ]  # fmt: skip
    assert [x["rows"] for x in lines] == [[{"earlier": sorted(("one", "crash", "slow")[:i])}] for i in range(4)]


def test_no_stage_begins_when_the_time_is_up() -> None:
    (line,) = run(COMMAND, [GpuStage("one", 30, "")], total=1.0)
    assert line["error"] == "no time was left for it"


def test_the_stages_fit_the_whole() -> None:
    assert sum(s.seconds for s in STAGES) <= TOTAL == 480


@pytest.mark.parametrize(
    ("words", "why"),
    [(["gpu"], "torch sees no CUDA device"), (["gpu", "--quick"], "it measures at sizes of its own"),
     (["ladder", "--rehearse"], "only `gpu` is rehearsed")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert why in capsys.readouterr().err


# ---- the published runs
def test_the_share_of_a_published_run_costs_what_it_did() -> None:
    """Time and FLOPs in proportion to the tokens: as fast as the FLOPs say."""
    rows: list[Row] = [{"kind": "compute", "ms": 100.0}]
    rows += [{"kind": published.SHARES, "ms": 100.0 * s, "flops": s, "tokens": s} for s in (0.05, 0.5, 1.0)]
    told: list[Row] = []
    published.skyreels(rows, 5, told.append)
    published.magi(rows, told.append)
    for row in told:
        assert "flops" not in row or row["speed_up"] == pytest.approx(1 / row["flops"])  # type: ignore[operator]
    assert [r["name"] for r in told] == [
        "exact", "MotionCache slow", "MotionCache fast", "exact", "MotionCache slow", "MotionCache fast", "SCOPE",
    ]  # fmt: skip
    published.magi(rows[:1], pytest.fail)


@pytest.mark.slow
def test_the_whole_run_is_rehearsed_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--rehearse"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in lines] == [s.name for s in STAGES]
    assert [r["published"] for r in lines[6]["rows"] if "published" in r] == [1.64, 2.07, 2.55]
