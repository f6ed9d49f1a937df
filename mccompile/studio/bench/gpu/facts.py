"""First stage: which machine this is, and what it can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from mccompile.studio.bench.gpu.machine import Machine
from mccompile.studio.bench.gpu.telling import TellRow
from mccompile.studio.bench.report import Json, machine_facts
from mccompile.studio.bench.timing import CallTimer

SMALL_KERNELS = 200
PACKAGES = ("triton", "transformers", "cache-dit", "nvidia-cuda-crt", "nvidia-cuda-cccl")


def facts(machine: Machine, tell: TellRow) -> None:
    """The machine, the versions, then one row per ceiling."""
    tell({"name": "machine", **machine_facts(), **_gpu(), "packages": {n: _version(n) for n in PACKAGES}})
    for name, row in _ceilings(machine):
        tell({"name": name, **row()})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> dict[str, Json]:
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return {
        "capability": [found.major, found.minor], "multiprocessors": found.multi_processor_count,
        "memory_gb": total / 1e9, "free_gb": free / 1e9, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


def _ceilings(machine: Machine) -> list[tuple[str, Callable[[], dict[str, Json]]]]:
    side, device, dtype = machine.scale.matrix, machine.device, machine.dtype

    def product() -> dict[str, Json]:
        a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = timed(machine, lambda: a @ b)
        return {"seconds": seconds, "tflops": 2 * side**3 / seconds / 1e12}

    def copy() -> dict[str, Json]:
        a = torch.zeros(machine.scale.bytes, dtype=torch.uint8, device=device)
        b = torch.zeros_like(a)
        seconds = timed(machine, lambda: b.copy_(a))
        return {"seconds": seconds, "gb_per_second": 2 * machine.scale.bytes / seconds / 1e9}

    def transfer(up: bool) -> dict[str, Json]:
        pinned = torch.zeros(machine.scale.bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        there = torch.zeros(machine.scale.bytes, dtype=torch.uint8, device=device)
        source, target = (pinned, there) if up else (there, pinned)
        seconds = timed(machine, lambda: target.copy_(source, non_blocking=True))
        return {"seconds": seconds, "gb_per_second": machine.scale.bytes / seconds / 1e9}

    def launches() -> dict[str, Json]:
        small = torch.zeros(16, device=device)

        def many() -> None:
            for _ in range(SMALL_KERNELS):
                small.add_(1.0)

        return {"microseconds": timed(machine, many) / SMALL_KERNELS * 1e6}

    return [
        ("product of matrices", product), ("copy on the device", copy), ("upload, pinned", lambda: transfer(True)),
        ("download, pinned", lambda: transfer(False)), ("launch", launches),
    ]  # fmt: skip


def timed(machine: Machine, call: Callable[[], object]) -> float:
    """Seconds of a call: the median of its rounds, after one that is not timed."""
    clock = CallTimer(machine.device)
    call()
    return statistics.median(clock.seconds(call) for _ in range(machine.scale.rounds))
