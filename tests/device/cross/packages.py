"""Compiles moved recordings to packages, and reads each of them."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes

from mccompile.backend.aot import CannotCompile, compile_program, export_role
from mccompile.backend.record import RoleRecording
from tests.device.cross.reading import Calls, Resources, read_resources, read_wrapper
from tests.device.cross.roles import Mover


@dataclass(frozen=True, slots=True)
class Compiled:
    """A package and what is in it. by_rows: a selection decides its sizes. error: why it is none; "" if it is one."""

    role: str
    by_rows: bool
    error: str
    calls: Calls = field(default_factory=Calls)
    kernels: tuple[Resources, ...] = ()


def compiled(recordings: dict[str, RoleRecording]) -> Iterator[Compiled]:
    """Each recording as a package, in their order."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    mover = Mover(mode)
    for recording in recordings.values():
        yield _one(mode, mover.recording(recording))


def _one(mode: FakeTensorMode, recording: RoleRecording) -> Compiled:
    by_rows = recording.role.part == "rows"
    several = any(c is not None for c in recording.calls) and _samples(recording) > 1
    role = f"{recording.role}{', several samples' if several else ''}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        try:
            with mode:
                program, _ = export_role(recording)
            with _disable_current_modes():
                compile_program(program, path, True, by_rows)
        except CannotCompile as verdict:
            return Compiled(role, by_rows, str(verdict))
        calls, kernels = read_package(path)
    return Compiled(role, by_rows, "", calls, tuple(kernels))


def _samples(recording: RoleRecording) -> int:
    shapes = [s.shape for s in recording.calls[0] if hasattr(s, "shape") and len(s.shape) == 3]
    return max((s[0] for s in shapes), default=1)


def read_package(path: Path) -> tuple[Calls, list[Resources]]:
    """The calls and the kernels of a package."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        wrapper = next(n for n in names if n.endswith(".wrapper.cpp"))
        calls = read_wrapper(archive.read(wrapper).decode())
        kernels = []
        for name in names:
            if name.endswith(".cubin"):
                kernels += resources(Path(archive.extract(name, folder)))
    return calls, kernels


def resources(cubin: Path) -> list[Resources]:
    """What the kernels of a compiled file take."""
    from triton.backends import nvidia

    tool = Path(next(iter(nvidia.__path__)), "bin", "cuobjdump")
    found = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True)
    return read_resources(found.stdout)
