"""A captured model as JSON and constants, rebuilt without torch.export around a model that is loaded again.

Weights stay with the model: graphs name them. Tensors that only the captured graph owns are written as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from mccompile.backend.graph_text import GraphJson, UnwritableGraph, write_graph, write_value
from mccompile.backend.records import read_any, read_record, write_record
from mccompile.bundles.allowed import refused_calls
from mccompile.bundles.graph_reading import is_path, read_graph, read_value
from mccompile.bundles.spec_text import read_spec
from mccompile.capture.own import own
from mccompile.capture.part import AttentionSite, Operand, Part, Result, attribute
from mccompile.capture.types import (
    BlockKind,
    BlockSite,
    BufferSpec,
    CapturedModel,
    ModulatedInput,
    OneFrame,
    PlacedGrid,
    Port,
    Refusal,
    TokenGrid,
    ToldGrid,
)

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
    "grid": TokenGrid | ToldGrid | PlacedGrid | OneFrame | None,
    "refusals": tuple[Refusal, ...],
    "samples": tuple[str, ...],
    "unbatched": str,
    "fixed": tuple[tuple[str, int], ...],
    "dtypes": tuple[tuple[str, str], ...],
    "moving": tuple[str, ...],
    "guards": tuple[str, ...],
    "each": tuple[str, ...],
}
_PARTS = ("prelude", "gather", "postlude")
_ENTRIES: dict[str, type[Operand | Result]] = {c.__name__: c for c in (*get_args(Operand), *get_args(Result))}


def write_captured(captured: CapturedModel, model: nn.Module) -> tuple[dict[str, GraphJson], dict[str, torch.Tensor]]:
    """The captured `model` as (JSON, constants that the model does not have itself).

    Raises UnwritableGraph where a graph or a constant of the call has no text form.
    """
    if captured.opaque:
        raise UnwritableGraph(f"{captured.model_class}.forward, whose blocks are its own code,")
    data = {name: write_record(getattr(captured, name)) for name in _RECORDS}
    data["constants"] = [[name, write_value(value)] for name, value in captured.constants]
    data["specs"] = [pytree.treespec_dumps(captured.in_spec), pytree.treespec_dumps(captured.out_spec)]
    data["module"] = _write_graph(captured.module.graph)
    data |= {name: _write_part(getattr(captured, name)) for name in _PARTS}
    data["kinds"] = [
        {
            "full": _write_part(kind.full),
            "partial": _write_part(kind.partial),
            "allocate": _write_part(kind.allocate),
            "row_keys": write_record(kind.row_keys),
            "buffers": write_record(kind.buffers),
            "modulated": write_record(kind.modulated),
            "mixing": write_record(kind.mixing),
        }
        for kind in captured.kinds
    ]
    own = {name: t for name in _names(captured) if isinstance(t := _find(captured.module, name), torch.Tensor)}
    constants = {name: t.detach() for name, t in own.items() if not _same(_find(model, name), t)}
    return data, constants


def read_captured(data: GraphJson, model: nn.Module, constants: Mapping[str, torch.Tensor]) -> CapturedModel:
    """What `write_captured` wrote, over the weights of `model`. Raises ValueError for other data."""
    home = _Home(model, constants)
    if not isinstance(data, dict):
        raise ValueError(f"no captured model: {data!r:.100}")
    wanted = {*_RECORDS, *_PARTS, "module", "constants", "specs", "kinds"}
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
    parts: dict[str, object] = {"opaque": "", **records, **{name: home.part(data[name]) for name in _PARTS}}
    parts["module"] = home.module(data["module"])
    parts["constants"] = tuple((read_record(str, name), read_value(value)) for name, value in map(_list, pairs))
    parts["in_spec"], parts["out_spec"] = (read_spec(s) for s in specs)
    parts["kinds"] = tuple(_read_kind(kind, home.part) for kind in kinds)
    return CapturedModel(**parts)  # type: ignore[arg-type]


def _read_kind(data: GraphJson, part: Callable[[GraphJson], Part | None]) -> BlockKind:
    data = _dict(data, "full", "partial", "allocate", "row_keys", "buffers", "modulated", "mixing")
    full, allocate = part(data["full"]), part(data["allocate"])
    if full is None or allocate is None:
        raise ValueError("a kind of block without its forms on all rows")
    return BlockKind(
        full=full,
        partial=part(data["partial"]),
        allocate=allocate,
        row_keys=read_record(tuple[str, ...], data["row_keys"]),
        buffers=read_record(tuple[BufferSpec, ...], data["buffers"]),
        modulated=_read_modulated(data["modulated"]),
        mixing=read_record(tuple[Refusal, ...], data["mixing"]),
    )


def _read_modulated(data: GraphJson) -> ModulatedInput | str:
    return data if isinstance(data, str) else read_record(ModulatedInput, data)


def _write_part(part: Part | None) -> GraphJson:
    """The graph with what it takes and gives."""
    if part is None:
        return None
    return {
        "graph": _write_graph(part.graph),
        "takes": [_write_entry(o) for o in part.takes],
        "gives": [_write_entry(r) for r in part.gives],
        "attentions": write_record(part.attentions),
    }


def _write_graph(graph: fx.Graph) -> GraphJson:
    """Raises UnwritableGraph where the graph calls what no bundle may hold: it could not be read back."""
    refused = refused_calls(graph)
    if refused:
        raise UnwritableGraph(f"{refused[0]}, which is not on the list of what bundles hold,")
    return write_graph(graph)


def _write_entry(entry: Operand | Result) -> GraphJson:
    """The class by its name, and its fields."""
    return [type(entry).__name__, write_record(entry)]


def _read_entry(entry: GraphJson) -> Operand | Result:
    """What `_write_entry` wrote. Raises ValueError for another entry."""
    match entry:
        case [str(name), fields] if name in _ENTRIES:
            return read_record(_ENTRIES[name], fields)
    raise ValueError(f"no operand and no result: {entry!r:.100}")


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
        if leaf not in owner._buffers:  # one tensor for all graphs
            owner.register_buffer(leaf, own(value), persistent=isinstance(value, nn.Parameter))

    def part(self, data: GraphJson) -> Part | None:
        """A part as it was written. Raises ValueError where it is none."""
        if data is None:
            return None
        parts = _dict(data, "graph", "takes", "gives", "attentions")
        return Part(
            self.module(parts["graph"]),
            tuple(_read_entry(o) for o in _list(parts["takes"])),  # type: ignore[misc]
            tuple(_read_entry(r) for r in _list(parts["gives"])),  # type: ignore[misc]
            read_record(tuple[AttentionSite, ...], parts["attentions"]),
        )

    def module(self, entries: GraphJson) -> fx.GraphModule:
        """A graph over the tensors that it names. Raises ValueError where it is none."""
        graph = read_graph(entries)
        for node in graph.nodes:
            if node.op == "get_attr":
                self.add(str(node.target))
        return fx.GraphModule(self.root, graph)


def _list(value: GraphJson) -> list[GraphJson]:
    if not isinstance(value, list):
        raise ValueError(f"no list: {value!r:.100}")
    return value


def _dict(value: GraphJson, *names: str) -> dict[str, GraphJson]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"not {', '.join(names)}: {value!r:.100}")
    return value


def _names(captured: CapturedModel) -> list[str]:
    """Every attribute that some graph or some block names."""
    parts = [captured.prelude, captured.postlude, captured.gather]
    parts += [p for k in captured.kinds for p in (k.full, k.partial, k.allocate)]
    graphs = [captured.module.graph, *(p.graph for p in parts if p is not None)]
    named = [str(n.target) for g in graphs for n in g.nodes if n.op == "get_attr"]
    return list(dict.fromkeys([*named, *(w for site in captured.blocks for w in site.weights)]))


def _find(module: nn.Module, name: str) -> object:
    try:
        return attribute(module, name)
    except AttributeError:
        return None


def _same(one: object, two: torch.Tensor) -> bool:
    return isinstance(one, torch.Tensor) and one.shape == two.shape and one.data_ptr() == two.data_ptr()
