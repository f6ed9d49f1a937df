"""Where a pipeline runs: its device, its dtype, and what waits on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from mccompile.generate.errors import OptionRefused

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a pipeline runs and how. cpu_offload: text encoder and VAE wait on the CPU while they are not needed."""

    device: str
    dtype: DtypeName
    cpu_offload: bool

    def of_worker(self) -> Placement:
        """The same in a worker, which sees the device that it was given and no other."""
        return replace(self, device=self.device.partition(":")[0])

    @staticmethod
    def of(device: str | None, dtype: DtypeName | None, cpu_offload: bool) -> Placement:
        """The accelerator where there is one; float32 on CPUs, bfloat16 elsewhere. Raises OptionRefused."""
        chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        kind, _, index = chosen.partition(":")
        if kind not in ("cpu", "cuda"):
            raise OptionRefused(f"--device {chosen}", "no such kind of device", "choose cpu, cuda or cuda:N")
        if kind == "cuda" and not torch.cuda.is_available():
            raise OptionRefused(f"--device {chosen}", "torch sees no CUDA device", "run with --device cpu")
        known = range(torch.cuda.device_count() if kind == "cuda" else 0)
        if ":" in chosen and not (index.isdecimal() and int(index) in known):
            why = f"there is no device `{chosen}` among {len(known)}" if kind == "cuda" else "there is one CPU"
            raise OptionRefused(f"--device {chosen}", why, "choose cpu, cuda or cuda:N")
        if kind == "cpu" and dtype == "float16":
            why = "torch has no float16 for several operations on the CPU"
            raise OptionRefused("--dtype float16", why, "choose float32, or bfloat16")
        if kind == "cpu" and cpu_offload:
            raise OptionRefused("--cpu-offload", "the model runs on the CPU already", "leave the option out")
        return Placement(chosen, dtype or ("float32" if kind == "cpu" else "bfloat16"), cpu_offload)
