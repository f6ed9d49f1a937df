"""The headers that packages for a GPU are compiled with: a CUDA toolkit's, or those of NVIDIA's wheels.

Torch's wheels bring most of them, but neither `crt/` nor `nv/`. Without these no graph becomes a package.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from torch.utils import cpp_extension

NEEDED = {  # by the package whose wheel brings it
    "nvidia-cuda-runtime": "cuda_runtime_api.h",
    "nvidia-cuda-crt": "crt/host_defines.h",
    "nvidia-cuda-cccl": "nv/target",
}
WHEELS = "nvidia"  # the package that NVIDIA's wheels lie in
REMEDY = "pip install 'mccompile[cuda]', or set CUDA_HOME to a toolkit"


def folders() -> tuple[Path, ...]:
    """Where headers may lie, in the order in which they are looked for."""
    toolkit = [] if cpp_extension.CUDA_HOME is None else [Path(cpp_extension.CUDA_HOME, "include")]
    told = [Path(p) for p in os.environ.get("CPATH", "").split(os.pathsep) if p]
    spec = importlib.util.find_spec(WHEELS)
    roots = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    wheels = [folder for root in roots for folder in sorted(root.glob("cu*/include"))]
    return tuple(place for folder in (*toolkit, *told, *wheels) for place in (folder, folder / "cccl"))


def missing(places: Sequence[Path]) -> tuple[str, ...]:
    """The packages whose headers lie in none of the places."""
    return tuple(name for name, header in NEEDED.items() if not any((p / header).exists() for p in places))


def show_to_compilers(places: Sequence[Path]) -> None:
    """Lets compilers look where needed headers lie, those of processes that begin later too."""
    wanted = {str(p): None for header in NEEDED.values() for p in places if (p / header).exists()}
    told = {p: None for p in os.environ.get("CPATH", "").split(os.pathsep) if p}
    os.environ["CPATH"] = os.pathsep.join(told | wanted)
