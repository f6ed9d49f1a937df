"""Compiles graphs that AOTInductor refuses with torch.compile, before the first real call."""

from __future__ import annotations

import torch

from mccompile.backend.package_errors import NotCompiled
from mccompile.backend.record import RoleRecording, TensorSpec
from mccompile.backend.role import GraphCall
from mccompile.backend.sdpa import cudnn_attention


def compile_in_place(recording: RoleRecording) -> GraphCall:
    """The recorded graph under torch.compile(fullgraph=True), already compiled for all recorded axes.

    Raises NotCompiled where that fails too.
    """
    call = torch.compile(recording.module, fullgraph=True, dynamic=None)
    arguments: list[object] = []
    for place, spec in enumerate(recording.varied()):
        if not isinstance(spec, TensorSpec):
            arguments.append(spec)
            continue
        shape, order = spec.shape, recording.order(place)
        example = torch.empty_permuted(shape, order, dtype=spec.dtype, device=spec.device).zero_()
        for axis in recording.axes(place):
            torch._dynamo.mark_dynamic(example, axis)
        arguments.append(example)
    try:
        with torch.no_grad(), cudnn_attention(allowed=recording.role.part != "rows"):
            call(*arguments)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise NotCompiled(recording.role, f"{type(error).__name__}: {lines[0] if lines else ''}") from error
    return call
