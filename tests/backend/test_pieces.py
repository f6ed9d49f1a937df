"""A graph that reads a number from its data: what the number decides runs as it is, the rest is compiled."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from mccompile.backend.aot import export_role
from mccompile.backend.pieces import ByPieces, divide, reads_numbers
from mccompile.backend.record import Recorder, TensorSpec
from mccompile.backend.role import Role
from mccompile.runtime.blocks import eager

aten = torch.ops.aten
ROLE = Role("prelude", depends=frozenset({"mask", "text"}))


def cut_text(written: bool = False) -> fx.GraphModule:
    """(mask [1, L], text [1, L, 4]) -> the rows that the mask counts, through a layer [1, n, 4]; L; n.

    written: the text is written in place behind the cut, which is a view of it.
    """
    root = nn.Module()
    root.weight = nn.Parameter(torch.arange(16.0).view(4, 4), requires_grad=False)
    graph = fx.Graph()
    mask, text = map(graph.placeholder, ("mask", "text"))
    weight = graph.get_attr("weight")
    embedded = graph.call_function(aten.linear.default, (text, weight))
    total = graph.call_function(aten.sum.dim_IntList, (mask, [1]))
    count = graph.call_function(aten.item.default, (graph.call_function(aten.select.int, (total, 0, 0)),))
    rows = graph.call_function(aten.slice.Tensor, (embedded, 1, None, count))
    if written:
        graph.call_function(aten.fill_.Scalar, (rows, 0.0))
    length = graph.call_function(aten.sym_size.int, (embedded, 1))
    scaled = graph.call_function(aten.mul.Tensor, (graph.call_function(aten.relu.default, (rows,)), length))
    again = graph.call_function(aten.linear.default, (scaled, weight))
    graph.output((again, length, count, embedded))
    return fx.GraphModule(root, graph)


def inputs(counted: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(1, length, dtype=torch.long)
    mask[:, :counted] = 1
    return mask, torch.randn(1, length, 4, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(("counted", "length"), [(3, 7), (7, 7), (1, 5)])
def test_pieces_give_what_the_graph_gives(counted: int, length: int) -> None:
    module = cut_text()
    assert [p.compiled for p in divide(module)] == [True, False, True]
    found = ByPieces(eager)(module, ROLE)(*inputs(counted, length))
    wanted = module(*inputs(counted, length))
    assert found[1:3] == wanted[1:3] == (length, counted)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[3], wanted[3])


def test_what_reads_the_number_is_in_no_graph_that_is_compiled() -> None:
    before, between, after = divide(cut_text())
    assert [reads_numbers(p.module.graph) for p in (before, between, after)] == [False, True, False]
    targets = [n.target for n in between.module.graph.nodes if n.op == "call_function"]
    assert targets == [aten.item.default, aten.slice.Tensor]


def test_a_graph_that_reads_no_number_is_left_whole() -> None:
    seen: list[fx.GraphModule] = []
    graph = fx.Graph()
    graph.output((graph.call_function(aten.relu.default, (graph.placeholder("x"),)),))
    module = fx.GraphModule(nn.Module(), graph)
    by_pieces = ByPieces(lambda given, role: seen.append(given) or given.forward)
    by_pieces(module, ROLE)
    assert seen == [module]
    assert not by_pieces.divided


def test_a_value_written_in_another_piece_leaves_the_graph_whole() -> None:
    assert divide(cut_text(written=True)) == ()


def test_fewer_rows_than_the_data_has_make_the_size_vary() -> None:
    recorder = Recorder()
    for fewer in (False, True):
        ByPieces(recorder, fewer=fewer)(cut_text(), ROLE)(*inputs(4, 7))
    varied = [
        [spec.shape for call in recording.calls for spec in call if isinstance(spec, TensorSpec)]
        for recording in recorder.recordings.values()
    ]
    assert varied == [[(1, 7, 4), (1, 7)], [(1, 4, 4), (1, 7, 4), (1, 3, 4), (1, 7, 4)]]


def test_each_compiled_piece_is_exported_for_any_number() -> None:
    recorder = Recorder()
    for fewer in (False, True):
        ByPieces(recorder, fewer=fewer)(cut_text(), ROLE)(*inputs(4, 7))
    *_, last = recorder.recordings.values()
    program, contract = export_role(last)
    (_, rows), _ = contract.inputs
    assert isinstance(rows.sizes[1], str)
    given = torch.randn(1, 6, 4)
    weight = cut_text().weight
    assert torch.equal(program.module()(given, torch.empty(1, 7, 4), weight)[0], (given.relu() * 7) @ weight.T)
