"""A new layout operator is one entry of LAYOUTS: its labels, its origins and its sinks follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mccompile.capture import moves
from mccompile.capture.facts import measure
from mccompile.capture.labels import label
from mccompile.capture.moves import AxisGroup, LayoutOperator, Moved, axis_map
from mccompile.capture.normalise import drop_checks
from mccompile.capture.rows import key, video
from mccompile.capture.scope import Demand
from mccompile.capture.sink import sink_gather
from mccompile.capture.template import cut

OPERATOR = "mccompile_tests::upend"


@pytest.fixture(scope="module")
def upend() -> Iterator[torch._ops.OpOverload]:
    """[a, b, c] -> [c, b, a]: an operator that nobody has heard of."""
    library = torch.library.Library("mccompile_tests", "DEF")
    library.define("upend(Tensor x) -> Tensor")
    library.impl("upend", lambda x: x.permute(2, 1, 0).clone(), "CompositeExplicitAutograd")
    torch.library.register_fake(OPERATOR, lambda x: x.new_empty(x.shape[::-1]), lib=library)
    yield torch.ops.mccompile_tests.upend.default
    library._destroy()


def _reversed(call: Moved) -> moves.AxisMap:
    last = len(call.old) - 1
    return tuple(AxisGroup((a,), (last - a,)) for a in range(last + 1))


class _Adds(nn.Module):
    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return x + torch.ops.mccompile_tests.upend(shift)


class _Spreads(nn.Module):
    """One row a frame [1, frames, 8], four rows each, upended."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        spread = frames.unsqueeze(2).repeat(1, 1, 4, 1).flatten(1, 2)
        return torch.ops.mccompile_tests.upend(spread)


def _exported(model: nn.Module, *shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[object, object]:
    """The graph of a module and its facts at two sizes; axes that differ are dynamic."""
    one, two = ([torch.randn(pair[i]) for pair in shapes] for i in (0, 1))
    dynamic = [{i: torch.export.Dim.DYNAMIC for i in range(len(a)) if a[i] != b[i]} for a, b in shapes]
    with torch.no_grad():
        module = torch.export.export(model, tuple(one), dynamic_shapes=tuple(dynamic), strict=False).module()
    drop_checks(module)
    return module, measure(module, one, two)


def test_an_unknown_operator_has_no_rows_of_its_own(upend: torch._ops.OpOverload) -> None:
    module, facts = _exported(_Adds(), ((1, 6, 8), (1, 10, 8)), ((8, 6, 1), (8, 10, 1)))
    (node,) = [n for n in module.graph.nodes if n.target is upend]
    assert axis_map(node, facts) is None
    template = cut("block", [n for n in module.graph.nodes if n.op == "call_function"], set(), set(), facts)
    (shift,) = [p for p in template.values if p.name == "shift"]
    scope = label(template, {shift: {1: (video((6, 10)),)}})
    ((mixed, why),) = scope.mixing.items()
    assert mixed.target is upend
    assert "no rule says what this operator does" in str(why)
    assert scope.whole[mixed]


def test_labels_and_origins_follow_from_one_entry(
    upend: torch._ops.OpOverload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(moves.LAYOUTS, upend, LayoutOperator(_reversed))
    module, facts = _exported(_Adds(), ((1, 6, 8), (1, 10, 8)), ((8, 6, 1), (8, 10, 1)))
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    template = cut("block", nodes, set(), {nodes[-1]}, facts)
    x, shift = sorted(template.values, key=lambda p: p.name == "shift")
    rows = (video((6, 10)),)
    with pytest.raises(Demand) as demand:  # what is added is traced back through the new operator
        label(template, {x: {1: rows}})
    assert (demand.value.placeholder, demand.value.axis) == (shift, 1)
    scope = label(template, {x: {1: rows}, shift: {1: rows}})
    (result,) = template.outputs
    assert [key(r) if r else "" for r in scope.of(result)] == ["", "video", ""]


def test_a_gather_sinks_below_it(upend: torch._ops.OpOverload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moves.LAYOUTS, upend, LayoutOperator(_reversed))
    module, facts = _exported(_Spreads(), ((1, 3, 8), (1, 5, 8)))
    (value,) = module.graph.output_node().all_input_nodes
    (frames,) = module.graph.find_nodes(op="placeholder")
    sunk = sink_gather(facts, [], value, 1)
    assert sunk is not None
    assert (sunk.leaf, sunk.axis) == (frames, 1)
    assert [s.value for s in sunk.index.over] == [4]


@pytest.mark.parametrize(
    ("function", "shape", "groups"),
    [
        (lambda x: x.movedim(0, 2), (2, 3, 4), (((1,), (0,)), ((2,), (1,)), ((0,), (2,)))),
        (lambda x: x.select(1, 2), (2, 3, 4), (((0,), (0,)), ((2,), (1,)), ((1,), ()))),
        (lambda x: x.unsqueeze(-1), (2, 3), (((0,), (0,)), ((1,), (1,)), ((), (2,)))),
        (lambda x: x.unflatten(-1, (2, 2)), (3, 4), (((0,), (0,)), ((1,), (1, 2)))),
        (lambda x: x.narrow(0, 1, 2), (3, 4), (((1,), (1,)), ((0,), ()), ((), (0,)))),
    ],
)
def test_maps_of_axes(function: object, shape: tuple[int, ...], groups: tuple[object, ...]) -> None:
    class Whole(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)  # type: ignore[operator]

    module, facts = _exported(Whole(), (shape, shape))
    (node,) = [n for n in module.graph.nodes if n.op == "call_function"]
    assert axis_map(node, facts) == tuple(AxisGroup(*g) for g in groups)
