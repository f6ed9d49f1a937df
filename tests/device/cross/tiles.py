"""Compiles the kernels of attention over prefixes and within windows with every tile that may be chosen on a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from mccompile.backend.rows.choice import DTYPES, Tile, candidates, for_windows
from mccompile.backend.rows.operator import padded
from tests.device.cross.packages import resources
from tests.device.cross.pretend import Gpu

WIDTHS = (64, 128)  # of heads: the embedded model's, and that of SkyReels-V2, Wan and MAGI-1
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_TENSORS = ("Q", "K", "V", "OUT")
KERNELS = ("over prefixes", "within windows")


@dataclass(frozen=True, slots=True)
class CompiledTile:
    """kernel: of KERNELS. shared: bytes of shared memory. spilled: bytes per thread. error: why it does not compile."""

    kernel: str
    width: int
    dtype: torch.dtype
    tile: Tile
    shared: int = 0
    registers: int = 0
    spilled: int = 0
    error: str = ""


def compiled_tiles(gpu: Gpu) -> Iterator[CompiledTile]:
    """Every candidate on that GPU, of both kernels, for heads of every width."""
    for kernel, dtype, width in product(KERNELS, DTYPES, WIDTHS):
        tiles = candidates(gpu.capability)
        if kernel == KERNELS[1]:
            tiles = tuple(dict.fromkeys(for_windows(tile, gpu.capability) for tile in tiles))
        for tile in tiles:
            yield compiled_tile(gpu, kernel, width, dtype, tile)


def compiled_tile(gpu: Gpu, kernel: str, width: int, dtype: torch.dtype, tile: Tile) -> CompiledTile:
    """One candidate."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mccompile.backend.rows.kernel import prefix_rows
    from mccompile.backend.rows.window_kernel import window_rows

    function = dict(zip(KERNELS, (prefix_rows, window_rows), strict=True))[kernel]
    names = list(function.arg_names)
    constants = {
        "scale": width**-0.5, "SHARING": 1, "WIDTH": width, "OUT_WIDTH": width, "PADDED": padded(width),
        "OUT_PADDED": padded(width), "ROWS": tile.rows, "KEYS": tile.keys, "PRECISION": "ieee",
    }  # fmt: skip
    types = {n: "constexpr" if n in constants else "i32" for n in names}
    types |= dict.fromkeys(_TENSORS, _TYPES[dtype]) | {n: "*i32" for n in names if n in ("SEEN", "SPANS")}
    even = [n for n in names if n not in constants and n != "rows"]  # pointers and strides are multiples of 16
    source = ASTSource(
        fn=function, signature=types, constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in even},
    )  # fmt: skip
    target = GPUTarget("cuda", gpu.capability[0] * 10 + gpu.capability[1], 32)
    try:
        made = triton.compile(source, target=target, options={"num_warps": tile.warps, "num_stages": tile.stages})
    except RuntimeError as error:
        return CompiledTile(kernel, width, dtype, tile, error=str(error).splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(made.asm["cubin"])
        (found,) = resources(cubin)
    return CompiledTile(kernel, width, dtype, tile, made.metadata.shared, found.registers, found.spilled)
