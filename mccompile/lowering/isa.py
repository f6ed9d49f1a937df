"""The SIMD instruction set that Inductor compiles for, found with one probe instead of one per candidate.

On a cold cache Inductor builds and loads a test library for every instruction set that the CPU reports (11 runs of
the C++ compiler, 10 to 15 s) before it takes the best. Here only the best one is tried; if it builds and loads,
Inductor is told so (`cpp.vec_isa_ok`, the environment's TORCHINDUCTOR_VEC_ISA_OK), and if not, it probes as ever.
"""

from __future__ import annotations

import functools
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
    if config.cpp.vec_isa_ok is not None:  # the user has decided
        return _name(cpu_vec_isa.pick_vec_isa())
    with config.patch({"cpp.vec_isa_ok": True}):
        best = cpu_vec_isa.pick_vec_isa()
    if not isinstance(best, cpu_vec_isa.VecISA) or best is cpu_vec_isa.invalid_vec_isa:
        return ""
    if best.check_build(cpu_vec_isa.VecISA._avx_code):
        config.cpp.vec_isa_ok = True
        return _name(best)
    for isa in cpu_vec_isa.supported_vec_isa_list:  # they have learnt that all is well
        forget = getattr(type(isa).__bool__, "cache_clear", None)
        if forget is not None:
            forget()
    return _name(cpu_vec_isa.pick_vec_isa())


def cpu_features() -> tuple[str, ...]:
    """The instructions that compiled code may use here (it is built for this very CPU), sorted; costs no probe."""
    info = Path("/proc/cpuinfo")
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    if listed is None:
        return (torch.backends.cpu.get_cpu_capability(),)
    return tuple(sorted(f for f in listed[1].split() if _INSTRUCTIONS.match(f)))


def _name(isa: cpu_vec_isa.VecISA) -> str:
    return "" if isa is cpu_vec_isa.invalid_vec_isa else str(isa)
