"""The project's own attention kernel (prefix_attention.cpp): built once per machine, loaded, called.

Torch's kernel packs a tile of keys for every 32 queries, which costs much where a selection leaves few queries per
chunk. This one takes keys as they lie. Its tiles fill the registers of AVX-512 or of AVX2; other CPUs are torch's.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

import torch
from torch._inductor.cpp_builder import get_cpp_compiler

from mccompile.backend.folders import cache_folder, loadable
from mccompile.backend.isa import cpu_features

SOURCE = Path(__file__).with_name("prefix_attention.cpp")
FLAGS = ("-O3", "-funroll-loops", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-w")
INSTRUCTIONS = {  # by what torch says of the CPU; ATEN_CPU_CAPABILITY lowers it
    "AVX512": ("-march=native", "-mprefer-vector-width=512"),
    "AVX2": ("-march=native", "-mno-avx512f"),
}
LANES, WIDEST = 16, 256  # of prefix_attention.cpp: widths of heads that it takes


@functools.cache
def kernel() -> ctypes._NamedFuncPointer | None:
    """The kernel, compiled at the first use on this machine.

    None on other CPUs than those with AVX2 or AVX-512, and without a C++ compiler that takes it.
    """
    instructions = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if instructions is None:
        return None
    flags = (*FLAGS, *instructions)
    facts = "\0".join((*flags, *cpu_features())).encode()
    path = cache_folder() / f"attention-{hashlib.sha256(SOURCE.read_bytes() + facts).hexdigest()[:24]}.so"
    if not path.exists() and not _compiled(path, flags):
        return None
    function = ctypes.CDLL(str(loadable(path))).mccompile_prefix_attention
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [*[pointer] * 5, number, pointer, *[number] * 4, ctypes.c_float, number]
    function.restype = None
    return function


def _compiled(path: Path, flags: tuple[str, ...]) -> bool:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "kernel.so")
        try:
            subprocess.run([get_cpp_compiler(), *flags, str(SOURCE), "-o", str(made)], check=True, capture_output=True)
        except (subprocess.CalledProcessError, OSError, RuntimeError):
            return False
        made.chmod(0o700)
        made.replace(path)  # whole or not at all: other processes may be at it
    return True


def covers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether the kernel takes these; each row of a head must lie in one piece."""
    dim = q.size(3)
    dense = all(t.dtype == torch.float32 and t.stride(3) == 1 and t.size(3) == dim for t in (q, k, v))
    return dense and dim % LANES == 0 and dim <= WIDEST


def attend_natively(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None, out: torch.Tensor
) -> None:
    """Writes the rows of `out` [B, H, n, D] that `bounds` names, int64 [groups, 3]; the others are left as they are.

    Only for tensors that it `covers`, where there is a `kernel`.
    """
    run = kernel()
    assert run is not None
    bounds = bounds.contiguous()
    strides = [t.stride(i) for t in (q, k, v, out) for i in range(3)]
    run(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), bounds.data_ptr(), bounds.size(0),
        (ctypes.c_int64 * len(strides))(*strides), q.size(0), q.size(1), k.size(1), q.size(3),
        q.size(3) ** -0.5 if scale is None else scale, torch.get_num_threads(),
    )  # fmt: skip
