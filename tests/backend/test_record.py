"""What recorded calls say: which axes and numbers vary, and which call shows it best."""

from __future__ import annotations

import torch
from torch import fx, nn

from mccompile.backend.record import DYNAMIC, Recorder, axis_order
from mccompile.backend.role import Role


def recorded(*calls: tuple[object, ...]) -> Recorder:
    graph = fx.Graph()
    values = [graph.placeholder(f"v{i}") for i in range(len(calls[0]))]
    graph.output((values[0], 7))
    recorder = Recorder()
    run = recorder(fx.GraphModule(nn.Module(), graph), Role("gather"))
    for call in calls:
        assert run(*call)[0] is call[0]
    return recorder


def test_axes_and_numbers_that_differ_are_dynamic() -> None:
    calls = [(torch.zeros(2, n, 8), n, True) for n in (5, 9, 5)]
    (recording,) = recorded(*calls).recordings.values()
    assert len(recording.calls) == 2
    assert recording.axes(0) == (1,)
    assert recording.number(1) == DYNAMIC
    assert recording.number(2) is True
    assert recording.tensors == (True, False)


def test_the_most_varied_call_is_shown_to_export() -> None:
    calls = [(torch.zeros(n), torch.zeros(length)) for n, length in ((6, 6), (1, 6), (4, 9))]
    (recording,) = recorded(*calls).recordings.values()
    chosen = recording.varied()
    assert [spec.shape for spec in chosen] == [(4,), (9,)]  # type: ignore[union-attr]


def test_an_order_of_axes_is_kept_only_where_all_calls_share_it() -> None:
    turned = torch.zeros(1, 8, 5).transpose(1, 2)
    assert axis_order(turned) == (0, 2, 1)
    (same,) = recorded((turned,), (torch.zeros(1, 8, 7).transpose(1, 2),)).recordings.values()
    (mixed,) = recorded((turned,), (torch.zeros(1, 7, 8),)).recordings.values()
    assert same.order(0) == (0, 2, 1)
    assert mixed.order(0) == (0, 1, 2)


def test_what_is_not_dense_counts_as_plain() -> None:
    assert axis_order(torch.zeros(4, 9)[:, :3]) == (0, 1)
    assert axis_order(torch.zeros(4, 1).expand(4, 3)) == (0, 1)


def test_graphs_of_one_role_are_told_apart() -> None:
    recorder = Recorder()
    for factor in (2, 3):
        graph = fx.Graph()
        graph.output((graph.call_function(torch.mul, (graph.placeholder("x"), factor)),))
        recorder(fx.GraphModule(nn.Module(), graph), Role("prelude"))(torch.ones(2))
    assert len(recorder.recordings) == 2
