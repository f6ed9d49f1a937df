"""Finds the SIMD instruction set for which Inductor compiles, and probes one candidate in place of all.

With a cold cache, Inductor builds and loads a test library for every instruction set that the CPU reports. This takes
11 runs of the C++ compiler, one after the other, and then Inductor takes the best set. Here the best set is tried
first. If its library builds and loads, no other set is tried. Inductor learns the result from `cpp.vec_isa_ok` (in the
environment, TORCHINDUCTOR_VEC_ISA_OK). Processes that compile are told the name.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path

import torch
from torch._inductor import config, cpu_vec_isa

_INSTRUCTIONS = re.compile(  # of x86 and Arm; the other flags of /proc/cpuinfo are about the system
    r"s?sse|avx|fma|f16c|bmi|amx|v?aes|sha|gfni|v?pclmul|popcnt|abm|movbe|adx|asimd|sve|bf16|i8mm|fphp"
)


@functools.cache
def host_isa() -> str:
    """Name of the instruction set that compiled code uses, such as "avx512"; "" for none. Settles the probing."""
    chosen = (config.cpp.vec_isa_ok, config.cpp.simdlen, os.environ.get("ATEN_CPU_CAPABILITY"))
    if chosen != (None, None, None) or platform.machine() not in ("x86_64", "AMD64"):
        return _name(cpu_vec_isa.pick_vec_isa())  # the user has decided, or there is one candidate only
    reported = cpu_vec_isa.x86_isa_checker()
    listed = [i for i in cpu_vec_isa.supported_vec_isa_list if set(str(i).split()) <= set(reported)]
    for isa in listed:
        with config.patch({"cpp.vec_isa_ok": True}):
            usable = bool(isa)  # the instructions of its own: AMX, VNNI
        if usable and isa.check_build(cpu_vec_isa.VecISA._avx_code):
            config.cpp.vec_isa_ok = True
            return _name(isa)
    for isa in listed:  # they have learnt that all is well
        forget = getattr(type(isa).__bool__, "cache_clear", None)
        if forget is not None:
            forget()
    return _name(cpu_vec_isa.pick_vec_isa())


def settle(name: str) -> None:
    """Leaves this process the instruction set of that name alone to consider: `host_isa` of its parent found it."""
    found = [isa for isa in cpu_vec_isa.supported_vec_isa_list if str(isa) == name]
    if found:
        cpu_vec_isa.supported_vec_isa_list[:] = found


def cpu_features() -> tuple[str, ...]:
    """The instructions that compiled code may use here (it is built for this very CPU), sorted; costs no probe."""
    info = Path("/proc/cpuinfo")
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    if listed is None:
        return (torch.backends.cpu.get_cpu_capability(),)
    return tuple(sorted(f for f in listed[1].split() if _INSTRUCTIONS.match(f)))


def cpu_model() -> str:
    """The CPU's name as the system gives it; "" where it gives none."""
    info = Path("/proc/cpuinfo")
    listed = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return platform.processor() if listed is None else listed[1]


def _name(isa: cpu_vec_isa.VecISA) -> str:
    return "" if isa is cpu_vec_isa.invalid_vec_isa else str(isa)
