"""Makes a CUDA build of torch believe in a GPU that is not there: enough to export and to compile for it.

Nothing can run. Tensors are fake (FakeTensorMode) and say `cuda:0`. Where Inductor would time kernels, the first
candidate is taken. Where it would trace patterns on the device itself, it has none of them. What stays as on a real
machine: the graphs, their fusion, the code of the kernels, and which attention torch chooses.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

REGISTERS = 65_536  # of a multiprocessor, of all generations since 7.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU to compile for. capability: as CUDA numbers it. shared: bytes of shared memory that a block may have."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    memory: int
    cache: int

    @property
    def arch(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


GPUS = {
    "sm_90": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 232_448, 80 * 2**30, 50 * 2**20),
    "sm_89": Gpu("NVIDIA L40S", (8, 9), 142, 101_376, 48 * 2**30, 96 * 2**20),
}


class _Nothing:
    """A context, and a stream, in which nothing happens."""

    idx = prev_idx = cuda_stream = 0

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Utils:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._gpu.shared, "multiprocessor_count": self._gpu.multiprocessors, "warpSize": 32,
            "max_num_regs": REGISTERS, "sm_clock_rate": 1_980_000, "mem_clock_rate": 2_619_000, "mem_bus_width": 5_120,
        }  # fmt: skip

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads: the cubin itself says the truth


class _Driver:
    """Triton's driver of the GPU."""

    binary_ext = "cubin"

    def __init__(self, gpu: Gpu) -> None:
        from triton.backends.compiler import GPUTarget

        self.utils, self._gpu = _Utils(gpu), gpu
        self._target = GPUTarget("cuda", gpu.capability[0] * 10 + gpu.capability[1], 32)

    def launcher_cls(self, *_: object) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def get_current_target(self) -> object:
        return self._target

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return self._gpu.capability

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_interface(self) -> types.ModuleType:
        return torch.cuda

    def get_benchmarker(self) -> Callable[..., list[float]]:
        return lambda *args, **kwargs: [0.0, 0.0, 0.0]

    def is_active(self) -> bool:
        return True


def pretend(gpu: Gpu) -> None:
    """From now on, for the whole process. Nothing of CUDA may have been asked for before."""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{gpu.capability[0]}.{gpu.capability[1]}")
    os.environ["TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER"] = "0"
    from triton.runtime import driver

    driver.set_active(_Driver(gpu))
    _tell_torch(gpu)
    _tell_inductor(gpu)
    _choose_attention(gpu)
    _choose_tile()


def _tell_torch(gpu: Gpu) -> None:
    properties = types.SimpleNamespace(
        name=gpu.name, major=gpu.capability[0], minor=gpu.capability[1], total_memory=gpu.memory,
        multi_processor_count=gpu.multiprocessors, regs_per_multiprocessor=REGISTERS, warp_size=32, gcnArchName="",
        max_threads_per_multi_processor=2048, max_threads_per_block=1024, L2_cache_size=gpu.cache,
        shared_memory_per_block=49_152, shared_memory_per_block_optin=gpu.shared, is_integrated=False,
        shared_memory_per_multiprocessor=gpu.shared + 1024, is_multi_gpu_board=False, uuid="none",
    )  # fmt: skip
    known: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: gpu.capability, "get_device_name": lambda device=None: gpu.name,
        "is_initialized": lambda: True, "synchronize": lambda device=None: None, "_lazy_init": lambda: None,
        "is_bf16_supported": lambda *args, **kwargs: True, "set_device": lambda device: None,
        "_exchange_device": lambda device: 0, "_maybe_exchange_device": lambda device: 0,
        "get_device_arch_list": lambda: [gpu.arch], "get_arch_list": lambda: [gpu.arch],
        "mem_get_info": lambda device=None: (gpu.memory, gpu.memory), "device": _Nothing,
        "current_stream": lambda device=None: _Nothing(), "stream": _Nothing,
    }  # fmt: skip
    vars(torch.cuda).update(known)
    state = {
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda new, device="cuda": None, "_lazy_init": lambda: None,
    }  # fmt: skip
    vars(torch.cuda.random).update(state)
    vars(torch.cuda).update(state)
    vars(torch._C)["_cuda_getCurrentRawStream"] = lambda device: 0
    from torch._dynamo import device_interface as interfaces

    interface: Any = interfaces.CudaInterface
    interface.device = _Nothing
    names = ("current_device", "set_device", "device_count", "current_stream", "synchronize", "get_device_properties")
    for name in names:
        type.__setattr__(interface, name, staticmethod(known[name]))
    interface.is_bf16_supported = staticmethod(known["is_bf16_supported"])
    interface.exchange_device = interface.maybe_exchange_device = staticmethod(lambda device: 0)
    interface.get_raw_stream = interface.memory_allocated = staticmethod(lambda device=None: 0)
    interfaces.caching_worker_device_properties["cuda"] = [properties]
    interfaces.caching_worker_current_devices["cuda"] = 0


def _tell_inductor(gpu: Gpu) -> None:
    import torch.utils._triton
    from torch._inductor import config, utils
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.fx_passes import fuse_attention, joint_graph, misc_patterns, pad_mm
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module in (utils, torch.utils._triton):
        for known in list(vars(module).values()):
            if callable(getattr(known, "cache_clear", None)):
                known.cache_clear()
    nothing = {name: lambda *args, **kwargs: None for name in ("_sfdp_init", "_pad_mm_init", "_misc_patterns_init")}
    for module in (fuse_attention, joint_graph, misc_patterns, pad_mm):  # they trace on tensors of the device
        vars(module).update({name: call for name, call in nothing.items() if name in vars(module)})
    vars(triton_helpers)["set_driver_to_gpu"] = lambda: None
    config.joint_graph_constant_folding = False  # it computes on the device
    config.compile_threads = 1
    config.use_static_triton_launcher = False
    CachingAutotuner.bench = lambda self, launcher, *args, **kwargs: float(self.launchers.index(launcher) + 1)  # type: ignore[method-assign]
    tune: Any = PythonWrapperCodegen.generate_and_run_autotune_block

    def on_fakes(self: object) -> object:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return tune(self)

    PythonWrapperCodegen.generate_and_run_autotune_block = on_fakes  # type: ignore[method-assign]


def _choose_attention(gpu: Gpu) -> None:
    """Torch's choice for such a GPU, made here: the real one asks a driver.

    As in torch 2.13 (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp): cuDNN first on 9.0, where it is allowed;
    flash for half precision without a mask; the memory-efficient kernel with one.
    """
    from torch._C import DispatchKey

    aten = torch.ops.aten
    plain = aten.scaled_dot_product_attention.default

    @plain.py_impl(DispatchKey.CompositeImplicitAutograd)
    def chosen(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, *,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        if enable_gqa and query.size(-3) != key.size(-3):
            key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
        half = query.dtype in (torch.bfloat16, torch.float16) and query.size(-1) % 8 == 0 and query.size(-1) <= 256
        if half and gpu.capability[0] == 9 and torch.backends.cuda.cudnn_sdp_enabled():
            return aten._scaled_dot_product_cudnn_attention.default(
                query, key, value, _added(attn_mask, query), False, dropout_p, is_causal, False, scale=scale
            )[0]
        if half and attn_mask is None:
            return aten._scaled_dot_product_flash_attention.default(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        return aten._scaled_dot_product_efficient_attention.default(
            query, key, value, _added(attn_mask, query), False, dropout_p, is_causal, scale=scale
        )[0]


def _choose_tile() -> None:
    """The first candidate: nothing can be timed."""
    from mccompile.backend.rows import choice

    def measure(width: int, out_width: int, dtype: torch.dtype, device: torch.device) -> dict[Any, tuple[float, ...]]:
        first = choice.candidates(torch.cuda.get_device_capability(device))[0]
        return {None: (2.0,), first: (1.0,)}

    choice.measure = measure


def _added(mask: Any, query: Any) -> Any:
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        zeros = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        mask = zeros.masked_fill(mask.logical_not(), float("-inf"))
    return mask.expand(*query.shape[:-1], mask.shape[-1])


@contextlib.contextmanager
def stub_library(folder: str) -> Iterator[None]:
    """Inside, linkers find a libcuda: the driver's own comes with no wheel."""
    import subprocess

    subprocess.run(
        ["gcc", "-shared", "-x", "c", "/dev/null", "-o", f"{folder}/libcuda.so"], check=True, capture_output=True
    )
    before = os.environ.get("LIBRARY_PATH")
    os.environ["LIBRARY_PATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ.pop("LIBRARY_PATH")
        if before is not None:
            os.environ["LIBRARY_PATH"] = before
