"""Boolean attention masks as what attention makes of them, made once and not in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from mccompile.backend.role import Value
from mccompile.capture.part import Additive, Part, Shared, Stream
from mccompile.capture.types import CapturedModel, names_at
from mccompile.lowering.draft import inputs_of
from mccompile.runtime.operands import BoundPart

aten = torch.ops.aten
Dtypes: TypeAlias = Mapping[str, torch.dtype | None]


class AdditiveMasks:
    """0 where a mask is true and -inf elsewhere, in the dtype of the queries, made anew when the mask is another."""

    def __init__(self, captured: CapturedModel) -> None:
        floats = {t.dtype for t in captured.module.state_dict().values() if t.is_floating_point()}
        self.dtype = next(iter(floats)) if len(floats) == 1 else None  # that of queries, where there is only one
        self._known: dict[tuple[str, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def of(self, name: str, mask: Value, dtype: torch.dtype | None) -> Value:
        """The mask `name` as it is added to scores of that dtype; itself where it is not boolean, or dtype is None."""
        if dtype is None or not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            return mask
        known = self._known.get((name, dtype))
        if known is None or known[0] is not mask:
            zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            known = self._known[name, dtype] = (mask, zeros.masked_fill_(mask.logical_not(), float("-inf")))
        return known[1]


class QueryDtypes:
    """For the masks of each block, the dtype that they are added in, where a model has several; found once a kind."""

    def __init__(self, captured: CapturedModel, parts: Sequence[Part]) -> None:
        self._captured, self._parts = captured, parts
        self._found: dict[int, Dtypes] = {}

    def of(self, i: int, call: BoundPart, env: Mapping[str, torch.Tensor], shared: Mapping[str, Value]) -> Dtypes:
        """Those of block i, by the name of the mask in the model. call: the block; env, shared: what it is given."""
        site = self._captured.blocks[i]
        if site.kind not in self._found:
            whole: dict[type, Mapping[str, Value]] = {Additive: shared, Shared: shared, Stream: env}
            arguments = call.arguments(lambda operand: whole[type(operand)][operand.name])  # type: ignore[union-attr]
            self._found[site.kind] = dtypes_of_queries(self._parts[site.kind], arguments)
        names = names_at(self._captured.kinds[site.kind], site)
        return {names[Shared(n)]: dtype for n, dtype in self._found[site.kind].items()}


def dtypes_of_queries(part: Part, arguments: Sequence[object]) -> dict[str, torch.dtype | None]:
    """For each mask that a block adds, by its name in the part, the dtype of the queries that meet it.

    None where queries of several dtypes do. arguments: of one call, its masks as they are. A block whose modules have
    several dtypes may cast anywhere, so the graph is run on fake tensors. One that adds no mask is not run: it may be
    code that fake tensors cannot pass.
    """
    holders = {node: o.name for o, node in part.holders().items() if isinstance(o, Additive)}
    if not holders:
        return {}
    found = _Queries(part.module)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found.run(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    dtypes: dict[str, set[torch.dtype]] = {name: set() for name in holders.values()}
    for node, dtype in found.dtypes.items():
        for holder in inputs_of(node.args[3]) & holders.keys():
            dtypes[holders[holder]].add(dtype)
    return {name: next(iter(d)) if len(d) == 1 else None for name, d in dtypes.items()}


class _Queries(fx.Interpreter):
    """Notes the dtype of the queries of every attention under a mask."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.dtypes: dict[fx.Node, torch.dtype] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is aten.scaled_dot_product_attention.default and isinstance((*n.args, None, None)[3], fx.Node):
            query = self.env[n.args[0]]
            self.dtypes[n] = query.dtype
        return super().run_node(n)
