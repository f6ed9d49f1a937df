"""Captures a model without weights: its own graph at full depth, and the proofs on a shallow twin with random weights.

A weight without values has its shape and dtype, and one number in memory. The twin has the model's class, code and
widths; of each list of blocks it has the first two and the last one.

before: a model whose weights have no values, and two recorded calls
after:  the model's captured parts. What numbers must prove was proved on the twin, whose kinds of blocks are the same
refuses when: the twin's kinds of blocks are not the model's (ExportError), or it is captured with its blocks alone
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from mccompile.capture.batch import Arguments, CaptureWay, capture_way
from mccompile.capture.capture import captured_from
from mccompile.capture.errors import ExportError
from mccompile.capture.export import export_model, without_defaults
from mccompile.capture.part import Shared
from mccompile.capture.types import Assembled, BlockKind, CapturedModel, Port
from mccompile.capture.uncollected import uncollected

SHOWN = 2  # blocks at the head of each list that the twin keeps; and one at its end
_SCALE = 0.02  # of random weights, as trained ones are


def is_hollow(model: nn.Module) -> bool:
    """Whether weights of a model have no values of their own in memory."""
    return any(w.numel() > 1 and w.untyped_storage().nbytes() < w.numel() * w.itemsize for w in model.parameters())


def hollow(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    """A weight of zeros that takes the memory of one number."""
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)


def shallow(model: nn.Module) -> nn.Module:
    """The model's twin: fewer blocks, random weights, everything else the model's own."""
    memo: dict[int, object] = {}
    cut = dict(_lists(model))
    for blocks in cut.values():
        for block in list(blocks)[SHOWN:-1]:
            memo[id(block)] = nn.Identity()
    left = {id(below) for blocks in cut.values() for b in list(blocks)[SHOWN:-1] for below in b.modules()}
    noise = torch.Generator().manual_seed(0)
    for module in model.modules():
        for weight in module._parameters.values() if id(module) not in left else ():
            if weight is not None:
                values = torch.randn(weight.shape, generator=noise).mul_(_SCALE).to(weight.dtype)
                memo[id(weight)] = nn.Parameter(values, requires_grad=False)
    twin = copy.deepcopy(model, memo)
    for path in cut:
        blocks = twin.get_submodule(path)
        assert isinstance(blocks, nn.ModuleList)
        kept = [*list(blocks)[:SHOWN], blocks[-1]]
        parent, _, name = path.rpartition(".")
        twin.get_submodule(parent).add_module(name, nn.ModuleList(kept))
    return twin.eval()


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of more blocks than the twin needs; a list inside a block is not looked at."""
    for path, module in model.named_modules():
        inside = any(part.isdecimal() for part in path.split("."))
        large = isinstance(module, nn.ModuleList) and len(module) > SHOWN + 1
        if large and not inside and all(next(block.children(), None) is not None for block in module.children()):
            assert isinstance(module, nn.ModuleList)
            yield path, module


@uncollected()
def capture_hollow(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object]
) -> tuple[CapturedModel, tuple[Arguments, Arguments]]:
    """As `capture_batched`, of a model whose weights have no values. Raises CaptureError."""
    proved, given, way = capture_way(shallow(model), probe, second)
    return _at_depth(model, proved, way), given


def _at_depth(model: nn.Module, proved: CapturedModel, way: CaptureWay) -> CapturedModel:
    calls = [without_defaults(model, call) for call in way.calls]
    exported = export_model(model, calls[0], calls[1])
    return captured_from(model, exported, calls, way.unbatched, lambda made: _as_proved(made, proved))


def _as_proved(made: Assembled, proved: CapturedModel) -> CapturedModel:
    """The model's own parts with what the twin's numbers have proved of their like. Raises ExportError (MC0401)."""
    if made.inputs != proved.inputs or _around(made) != _around(proved):
        why = "its graph around the blocks is not that of the same model with fewer blocks"
        raise ExportError(made.model_class, why, "give the folder with its weights")
    kinds = tuple(_proved_kind(kind, proved, made.model_class) for kind in made.kinds)
    return replace(
        proved, module=made.module, prelude=made.prelude, postlude=made.postlude, entry=made.entry, exit=made.exit,
        shared=made.shared, sources=made.sources, gathered=made.gathered, streams=made.streams, kinds=kinds,
        blocks=made.blocks,
        gather=made.gather if proved.gather is not None else None,
    )  # fmt: skip


def _around(model: Assembled) -> tuple[object, ...]:
    """The values that are made around the blocks. Those of one block (keys of earlier chunks) count as its kind's."""
    readers = Counter(name for site in model.blocks for name in site.shared)
    given = zip(model.postlude.takes, model.postlude.graph.find_nodes(op="placeholder"), strict=True)
    late = {operand.name for operand, node in given if isinstance(operand, Shared) and node.users}
    own = {name for name, count in readers.items() if count == 1 and name not in late}
    ports = {port.name: port for port in model.shared}
    of_kinds = {
        (model.kinds[site.kind].full.module.code, place, _unnamed(ports[name]) if name in own else name)
        for site in model.blocks
        for place, name in enumerate(site.shared)
    }
    common = tuple(port for port in model.shared if port.name not in own)
    sources = tuple(port for port in model.sources if port.name not in own)
    return common, sources, frozenset(of_kinds)


def _unnamed(port: Port) -> Port:
    """What is known of a value apart from its name, and from the names of the inputs that it depends on."""
    return replace(port, name="", depends=frozenset(("",) if port.depends else ()))


def _proved_kind(kind: BlockKind, proved: CapturedModel, name: str) -> BlockKind:
    """A kind with a row form only where its like in the twin has one."""
    for other in proved.kinds:
        if other.full.module.code == kind.full.module.code and other.buffers == kind.buffers:
            same = other.partial is not None and kind.partial is not None
            same = same and other.partial.module.code == kind.partial.module.code  # type: ignore[union-attr]
            return kind if same else replace(kind, partial=None)
    raise ExportError(name, "a kind of its blocks is at no end of its lists", "give the folder with its weights")
