"""A captured model as JSON and constants, rebuilt without torch.export around a model that is loaded again.

Weights stay with the model: graphs name them. Tensors that only the captured graph owns are written as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mccompile.backend.graph_text import Json, UnwritableGraph, attribute, write_graph, write_value
from mccompile.backend.records import read_any, read_record, write_record
from mccompile.bundles.allowed import refused_calls
from mccompile.bundles.graph_reading import is_path, read_graph, read_value
from mccompile.bundles.spec_text import read_spec
from mccompile.capture.types import BlockKind, BlockSite, BufferSpec, CapturedModel, Port, Refusal, TokenGrid

_RECORDS: dict[str, object] = {
    "model_class": str,
    "inputs": tuple[str, ...],
    "entry": tuple[str, ...],
    "exit": tuple[str, ...],
    "shared": tuple[Port, ...],
    "sources": tuple[Port, ...],
    "gathered": tuple[str, ...],
    "streams": tuple[Port, ...],
    "row_keys": tuple[str, ...],
    "blocks": tuple[BlockSite, ...],
    "grid": TokenGrid | None,
    "refusals": tuple[Refusal, ...],
    "samples": tuple[str, ...],
    "unbatched": str,
    "fixed": tuple[tuple[str, int], ...],
}
_GRAPHS = ("module", "prelude", "gather", "postlude")


def write_captured(captured: CapturedModel, model: nn.Module) -> tuple[dict[str, Json], dict[str, torch.Tensor]]:
    """The captured `model` as (JSON, constants that the model does not have itself).

    Raises UnwritableGraph where a graph or a constant of the call has no text form.
    """
    data = {name: write_record(getattr(captured, name)) for name in _RECORDS}
    data["constants"] = [[name, write_value(value)] for name, value in captured.constants]
    data["specs"] = [pytree.treespec_dumps(captured.in_spec), pytree.treespec_dumps(captured.out_spec)]
    data |= {name: _write_module(getattr(captured, name)) for name in _GRAPHS}
    data["kinds"] = [
        {
            "full": _write_module(kind.full),
            "partial": _write_module(kind.partial),
            "allocate": _write_module(kind.allocate),
            "row_keys": write_record(kind.row_keys),
            "buffers": write_record(kind.buffers),
        }
        for kind in captured.kinds
    ]
    own = {name: t for name in _names(captured) if isinstance(t := _find(captured.module, name), torch.Tensor)}
    constants = {name: t.detach() for name, t in own.items() if not _same(_find(model, name), t)}
    return data, constants


def read_captured(data: Json, model: nn.Module, constants: Mapping[str, torch.Tensor]) -> CapturedModel:
    """What `write_captured` wrote, over the weights of `model`. Raises ValueError for other data."""
    home = _Home(model, constants)
    if not isinstance(data, dict):
        raise ValueError(f"no captured model: {data!r:.100}")
    wanted = {*_RECORDS, *_GRAPHS, "constants", "specs", "kinds"}
    if set(data) != wanted:
        raise ValueError(f"{sorted(wanted ^ set(data))!r:.100} should be there, or should not")
    kinds, specs, pairs = (_list(data[name]) for name in ("kinds", "specs", "constants"))
    records = {name: read_any(kind, data[name]) for name, kind in _RECORDS.items()}
    blocks = records["blocks"]
    assert isinstance(blocks, tuple)
    if any(not 0 <= site.kind < len(kinds) for site in blocks):
        raise ValueError("a block of a kind that is not there")
    for name in dict.fromkeys(w for site in blocks for w in site.weights):
        home.add(name)
    parts: dict[str, object] = {**records, **{name: home.module(data[name]) for name in _GRAPHS}}
    parts["constants"] = tuple((read_record(str, name), read_value(value)) for name, value in map(_list, pairs))
    parts["in_spec"], parts["out_spec"] = (read_spec(s) for s in specs)
    parts["kinds"] = tuple(_read_kind(kind, home.module) for kind in kinds)
    return CapturedModel(**parts)  # type: ignore[arg-type]


def _read_kind(data: Json, module: Callable[[Json], fx.GraphModule | None]) -> BlockKind:
    data = _dict(data, "full", "partial", "allocate", "row_keys", "buffers")
    return BlockKind(
        full=module(data["full"]),
        partial=module(data["partial"]),
        allocate=module(data["allocate"]),
        row_keys=read_record(tuple[str, ...], data["row_keys"]),
        buffers=read_record(tuple[BufferSpec, ...], data["buffers"]),
    )


def _write_module(module: fx.GraphModule | None) -> Json:
    """The graph, and what capture found out about its attentions (lowering/attention.py reads it)."""
    if module is None:
        return None
    refused = refused_calls(module.graph)
    if refused:
        raise UnwritableGraph(f"{refused[0]}, which is not on the list of what bundles hold,")
    found = (n for n in module.graph.nodes if "attention" in n.meta)
    about: dict[str, Json] = {n.name: write_value(n.meta["attention"]) for n in found}
    return {"graph": write_graph(module.graph), "attention": about}


class _Home:
    """Holds the attributes that graphs name: the model's own tensors, and the constants of a bundle."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]) -> None:
        self.root = nn.Module()
        self._model = model
        self._constants = constants

    def add(self, name: str) -> None:
        """Puts the tensor of this dotted name in place. Raises ValueError where neither side has it."""
        if not is_path(name):
            raise ValueError(f"no name of a tensor: {name!r:.100}")
        value = self._constants[name] if name in self._constants else _find(self._model, name)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"the model has no tensor `{name}`")
        *path, leaf = name.split(".")
        owner = self.root
        for part in path:
            inner = owner._modules.get(part)
            if inner is None:
                inner = nn.Module()
                owner.add_module(part, inner)
            owner = inner
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value, persistent=False)

    def module(self, data: Json) -> fx.GraphModule | None:
        if data is None:
            return None
        parts = _dict(data, "graph", "attention")
        graph, about = read_graph(parts["graph"]), parts["attention"]
        if not isinstance(about, dict):
            raise ValueError(f"no attentions: {about!r:.100}")
        for node in graph.nodes:
            if node.op == "get_attr":
                self.add(str(node.target))
            if node.name in about:
                node.meta["attention"] = read_value(about[node.name])
        return fx.GraphModule(self.root, graph)


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise ValueError(f"no list: {value!r:.100}")
    return value


def _dict(value: Json, *names: str) -> dict[str, Json]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"not {', '.join(names)}: {value!r:.100}")
    return value


def _names(captured: CapturedModel) -> list[str]:
    """Every attribute that some graph or some block names."""
    modules = [captured.module, captured.prelude, captured.postlude, captured.gather]
    modules += [m for k in captured.kinds for m in (k.full, k.partial, k.allocate)]
    named = [str(n.target) for m in modules if m is not None for n in m.graph.nodes if n.op == "get_attr"]
    return list(dict.fromkeys([*named, *(w for site in captured.blocks for w in site.weights)]))


def _find(module: nn.Module, name: str) -> object:
    try:
        return attribute(module, name)
    except AttributeError:
        return None


def _same(one: object, two: torch.Tensor) -> bool:
    return isinstance(one, torch.Tensor) and one.shape == two.shape and one.data_ptr() == two.data_ptr()
