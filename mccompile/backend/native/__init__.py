"""Attention over prefixes on the CPU by a kernel of our own (prefix_attention.cpp), for compiled graphs.

before: mccompile::prefix_attention(q, k, v, bounds);  after: mccompile::prefix_attention_native(q, k, v, bounds)
refuses when: the graph is not on the CPU, the CPU has no AVX-512, or there is no C++ compiler

Torch's kernel packs a tile of keys for every 32 queries, which costs as much as the products themselves where a
selection leaves few queries per chunk. Calls that the kernel does not cover (other dtypes than float32, head
dimensions that are no multiple of 16 or above 256) go to `prefix_attention`. Compiled once per machine, in a second.

Its tiles fill the 32 registers of AVX-512. On the 16 of AVX2 they spill, and torch is ten times faster.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import fx
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.runtime.cache_dir_utils import cache_dir

from mccompile.backend.isa import cpu_features
from mccompile.lowering.attention import LIBRARY, attend, shape_only

SOURCE = Path(__file__).with_name("prefix_attention.cpp")
FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-funroll-loops", "-ffp-contract=fast", "-std=c++17", "-fPIC",
    "-shared", "-fopenmp", "-w",
)  # fmt: skip
LANES, WIDEST = 16, 256  # of prefix_attention.cpp
LIBRARY.define("prefix_attention_native(Tensor q, Tensor k, Tensor v, Tensor bounds, float? scale=None) -> Tensor")


@functools.cache
def kernel() -> ctypes._NamedFuncPointer | None:
    """The kernel, compiled at the first use on this machine; None without AVX-512 or a C++ compiler that takes it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY lowers it
        return None
    source = SOURCE.read_bytes()
    facts = "\0".join((*FLAGS, *cpu_features())).encode()
    path = Path(cache_dir(), f"mccompile-{hashlib.sha256(source + facts).hexdigest()[:24]}.so")
    if not path.exists() and not _compiled(path):
        return None
    function = ctypes.CDLL(str(path)).mccompile_prefix_attention
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [*[pointer] * 5, number, pointer, *[number] * 4, ctypes.c_float, number]
    function.restype = None
    return function


def _compiled(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, "kernel.so")
        try:
            subprocess.run([get_cpp_compiler(), *FLAGS, str(SOURCE), "-o", str(made)], check=True, capture_output=True)
        except (subprocess.CalledProcessError, OSError, RuntimeError):
            return False
        made.replace(path)  # whole or not at all: other processes may be at it
    return True


def _attend_natively(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """As `attention.attend`, to float rounding."""
    run = kernel() if covers(q, k, v) else None
    if run is None:
        return attend(q, k, v, bounds, scale)
    out = q.new_empty(q.size(0), q.size(2), q.size(1), q.size(3)).transpose(1, 2)
    bounds = bounds.contiguous()
    strides = [t.stride(i) for t in (q, k, v, out) for i in range(3)]
    run(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), bounds.data_ptr(), bounds.size(0),
        (ctypes.c_int64 * len(strides))(*strides), q.size(0), q.size(1), k.size(1), q.size(3),
        q.size(3) ** -0.5 if scale is None else scale, torch.get_num_threads(),
    )  # fmt: skip
    return out


def covers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether the kernel takes these; each row of a head must lie in one piece."""
    dim = q.size(3)
    dense = all(t.dtype == torch.float32 and t.stride(3) == 1 and t.size(3) == dim for t in (q, k, v))
    return dense and dim % LANES == 0 and dim <= WIDEST


LIBRARY.impl("prefix_attention_native", _attend_natively, "CPU")
torch.library.register_fake("mccompile::prefix_attention_native", shape_only, lib=LIBRARY)


def use_native(graph: fx.Graph, device: torch.device) -> None:
    """Rewrites `graph`, in place. device: of all its tensors."""
    nodes = [n for n in graph.nodes if n.target is torch.ops.mccompile.prefix_attention.default]
    if nodes and device.type == "cpu" and kernel() is not None:
        for node in nodes:
            node.target = torch.ops.mccompile.prefix_attention_native.default
