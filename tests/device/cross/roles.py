"""The graphs that runs of a model ask for, recorded on the CPU and moved to a GPU that only has shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from mccompile.backend.inductor import distinct, why_eager
from mccompile.backend.record import Recorder, RoleRecording, TensorSpec
from mccompile.lowering.locate import latent_inputs, timestep_of
from mccompile.policy.bind import bind
from mccompile.runtime.exercise import record_roles
from mccompile.studio.bench.rig import POLICIES, StepWay, lowered_for
from mccompile.studio.bench.subjects import Subject

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAYS = (
    StepWay("vanilla", "compute"), StepWay("exact", "exact"), StepWay("5%", "share", 0.05),
    StepWay("both branches", "together", 0.05),
)  # fmt: skip


def recorded(subject: Subject, dtype: torch.dtype, ways: Sequence[StepWay] = WAYS) -> dict[str, RoleRecording]:
    """Every graph that a compile would make a package of, by its fingerprint; the sizes are small ones."""
    with torch.no_grad():
        model = subject.model(CPU, dtype)
        prepared = subject.prepared(model)
        recorder = Recorder()
        for way in ways:
            lowered = lowered_for(way, prepared)
            record_roles(recorder, lowered, bind(POLICIES[way.policy], way.parameters), prepared.calls)
    changing = latent_inputs(prepared.model) | {timestep_of(prepared.model)}
    called = {k: r for k, r in recorder.recordings.items() if r.calls and not why_eager(r, changing)}
    return distinct(called)


class Mover:
    """Moves recordings. A weight is moved once: graphs that share it go on sharing it."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def recording(self, recording: RoleRecording) -> RoleRecording:
        """As a run on the GPU would have left it; its weights are fake."""
        calls = [tuple(_there(a) for a in call) for call in recording.calls]
        return replace(recording, module=self._module(recording.module), calls=calls)

    def _module(self, module: fx.GraphModule) -> fx.GraphModule:
        root = nn.Module()
        for node in module.graph.find_nodes(op="get_attr"):
            _put(root, str(node.target), self._tensor(module, str(node.target)))
        graph = fx.Graph()
        graph.output(graph.graph_copy(module.graph, {}))
        for node in graph.nodes:
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _device)
        return fx.GraphModule(root, graph)

    def _tensor(self, module: nn.Module, name: str) -> torch.Tensor:
        owner, _, leaf = name.rpartition(".")
        value = getattr(module.get_submodule(owner), leaf)
        if id(value) not in self._moved:
            with self._mode:
                made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=CUDA)
            self._moved[id(value)] = (value, made)
        return self._moved[id(value)][1]


def _put(root: nn.Module, name: str, value: torch.Tensor) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if leaf not in root._buffers:
        root.register_buffer(leaf, value)


def _there(spec: object) -> object:
    """Host tensors stay on the host: bounds of attention."""
    if isinstance(spec, TensorSpec) and spec.device.type == "cpu" and not _of_host(spec):
        return replace(spec, device=CUDA)
    return spec


def _of_host(spec: TensorSpec) -> bool:
    return spec.dtype == torch.int64 and len(spec.shape) == 2 and spec.shape[1] == 3


def _device(value: object) -> object:
    return CUDA if isinstance(value, torch.device) and value.type == "cpu" else value


def devices(recordings: Mapping[str, RoleRecording]) -> set[str]:
    """The kinds of devices that the arguments of recordings are on."""
    specs = (s for r in recordings.values() for call in r.calls for s in call if isinstance(s, TensorSpec))
    return {s.device.type for s in specs}
