"""Tensors whose slices repeat: every operator gives what torch gives, and a mask of real size is never made whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from mccompile.lowering.attention import prefix_lengths
from mccompile.lowering.repeated import LARGEST, Repeated, TooLarge, run_repeated

aten = torch.ops.aten


def traced(function: Callable[..., Any], *arguments: object) -> fx.GraphModule:
    """The function as a graph of aten operators, for any values of its arguments: they are sizes."""
    graph = fx.Graph()
    holders = [graph.placeholder(f"n{i}") for i in range(len(arguments))]
    graph.output((function(graph, *holders),))
    return fx.GraphModule(torch.nn.Module(), graph)


def by_frames(graph: fx.Graph, frames: fx.Node, rows: fx.Node, columns: fx.Node, tokens: fx.Node) -> fx.Node:
    """The mask of SkyReels-V2: chunks of three frames, repeated over the tokens of each frame."""
    call = graph.call_function
    chunk = call(aten.floor_divide.default, (call(aten.arange.default, (frames,)), 3))
    causal = call(aten.le.Tensor, (call(aten.unsqueeze.default, (chunk, 0)), call(aten.unsqueeze.default, (chunk, 1))))
    cells = call(aten.view.default, (causal, [frames, 1, 1, frames, 1, 1]))
    cells = call(aten.repeat.default, (cells, [1, rows, columns, 1, rows, columns]))
    return call(aten.unsqueeze.default, (call(aten.reshape.default, (cells, [tokens, tokens])), 0))


def by_tokens(graph: fx.Graph, frames: fx.Node, rows: fx.Node, columns: fx.Node, tokens: fx.Node) -> fx.Node:
    """The same, compared token by token."""
    call = graph.call_function
    each = call(aten.repeat_interleave.self_int, (call(aten.arange.default, (frames,)), rows, 0))
    each = call(aten.repeat_interleave.self_int, (each, columns, 0))
    chunk = call(aten.floor_divide.default, (each, 3))
    causal = call(aten.ge.Tensor, (call(aten.unsqueeze.default, (chunk, 1)), call(aten.unsqueeze.default, (chunk, 0))))
    return call(aten.unsqueeze.default, (causal, 0))


MASKS = (by_frames, by_tokens)


class NothingLarge(TorchDispatchMode):
    """Raises where a tensor of more than LARGEST values is made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not isinstance(out, torch.Tensor) or out.numel() <= LARGEST, func
        return out


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_by_frames_is_what_the_graph_makes(mask: Callable[..., fx.Node]) -> None:
    sizes = (7, 2, 3, 42)
    module = traced(mask, *sizes)
    (found,) = run_repeated(module, sizes)
    assert isinstance(found, Repeated)
    assert torch.equal(found.whole(), module(*sizes)[0])
    assert found.once.shape == (1, 3, 3)  # chunks
    np.testing.assert_array_equal(prefix_lengths(found), prefix_lengths(module(*sizes)[0]))


@pytest.mark.parametrize("mask", MASKS)
def test_real_sizes_are_proved_without_the_whole_mask(mask: Callable[..., fx.Node]) -> None:
    sizes = (25, 34, 60, 51_000)
    with NothingLarge():
        (found,) = run_repeated(traced(mask, *sizes), sizes)
        lengths = prefix_lengths(found)
        with pytest.raises(TooLarge):
            found.whole()
    assert lengths is not None
    assert lengths.shape == (51_000,)
    assert sorted(set(lengths)) == [2_040 * f for f in (3, 6, 9, 12, 15, 18, 21, 24, 25)]


def test_a_mask_that_is_no_prefix_is_seen() -> None:
    causal = torch.arange(6)[None, :] <= torch.arange(6)[:, None]
    places = torch.arange(6).repeat_interleave(4)
    assert prefix_lengths(Repeated(causal, (places, places))) is not None
    turned = Repeated(causal, (places, places.flip(0)))
    assert prefix_lengths(turned) is None
    assert prefix_lengths(turned.whole()) is None


def test_graphs_that_write_are_run_as_they_are() -> None:
    graph = fx.Graph()
    value = graph.call_function(aten.arange.default, (graph.placeholder("n"),))
    graph.output((graph.call_function(aten.add_.Tensor, (value, 1)),))
    with pytest.raises(TooLarge):
        run_repeated(fx.GraphModule(torch.nn.Module(), graph), (4,))


SIZES = st.integers(1, 4)
KINDS = ("unsqueeze", "repeat", "interleave", "transpose", "merge", "split", "reshape", "flatten", "expand", "op")


def told(draw: st.DrawFn, shape: list[int]) -> list[int]:
    """The sizes, one of which may be left to the operator."""
    left = draw(st.integers(-1, len(shape) - 1))
    return [-1 if at == left else n for at, n in enumerate(shape)]


def factored(draw: st.DrawFn, number: int) -> list[int]:
    """Some sizes whose product is the number."""
    sizes = []
    while number > 1:
        sizes.append(draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0])))
        number //= sizes[-1]
    return sizes or [1]


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[Any, tuple[object, ...]]]:
    """Operators that fit one after the other, from a tensor [2, 3] on."""
    shape, steps = [2, 3], []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(KINDS))
        axis, before = draw(st.integers(0, len(shape) - 1)), shape
        match kind:
            case "unsqueeze":
                steps.append((aten.unsqueeze.default, (axis,)))
                shape.insert(axis, 1)
            case "repeat":
                factors = [draw(SIZES) if a == axis else 1 for a in range(len(shape))]
                steps.append((aten.repeat.default, (factors,)))
                shape = [n * f for n, f in zip(shape, factors, strict=True)]
            case "interleave":
                times = draw(SIZES)
                steps.append((aten.repeat_interleave.self_int, (times, axis)))
                shape[axis] *= times
            case "transpose":
                steps.append((aten.transpose.int, (0, axis)))
                shape[0], shape[axis] = shape[axis], shape[0]
            case "merge" if axis + 1 < len(shape):
                shape = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
                steps.append((aten.reshape.default, (told(draw, shape),)))
            case "reshape":
                shape = factored(draw, int(np.prod(shape)))
                steps.append((aten.reshape.default, (told(draw, shape),)))
            case "flatten":
                last = draw(st.integers(axis, len(shape) - 1))
                steps.append((aten.flatten.using_ints, (axis, last - draw(st.sampled_from([0, len(shape)])))))
                shape = [*shape[:axis], int(np.prod(shape[axis : last + 1])), *shape[last + 1 :]]
            case "split" if shape[axis] % 2 == 0:
                shape = [*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :]]
                steps.append((aten.view.default, (list(shape),)))
            case "expand" if shape[axis] == 1:
                shape = [draw(SIZES), *(-1 if a != axis else draw(SIZES) for a in range(len(shape)))]
                steps.append((aten.expand.default, (list(shape),)))
                shape = [n if a == -1 else a for n, a in zip([1, *before], shape, strict=True)]
            case "op":
                steps.append((aten.remainder.Scalar, (draw(SIZES),)))
        if np.prod(shape) > 3_000:
            break
    return steps


def run(steps: list[tuple[Any, tuple[object, ...]]], start: torch.Tensor) -> list[Repeated | torch.Tensor]:
    """Two values, which are held against those of torch: a comparison of the last one with itself, and that one."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for target, more in steps:
        source = graph.call_function(aten.contiguous.default, (value,)) if target is aten.view.default else value
        value = graph.call_function(target, (source, *more))
    graph.output((graph.call_function(aten.le.Tensor, (value, value)), value))
    module = fx.GraphModule(torch.nn.Module(), graph)
    found = run_repeated(module, (start,))
    for one, wanted in zip(found, module(start), strict=True):
        assert torch.equal(one.whole() if isinstance(one, Repeated) else one, wanted)
    return found


@settings(max_examples=150, deadline=None)
@given(chains())
def test_every_chain_of_operators_gives_what_torch_gives(steps: list[tuple[Any, tuple[object, ...]]]) -> None:
    run(steps, torch.arange(6).reshape(2, 3))


EACH_TWICE = (aten.repeat_interleave.self_int, (2, 0))
ROWS_TWICE = (aten.repeat.default, ([2, 1],))
ONCE: dict[str, tuple[list[tuple[Any, tuple[object, ...]]], tuple[int, ...]]] = {
    "unsqueeze": ([(aten.unsqueeze.default, (1,))], (2, 1, 3)),
    "unsqueeze from the end": ([(aten.unsqueeze.default, (-1,))], (2, 3, 1)),
    "unsqueeze behind the last": ([(aten.unsqueeze.default, (2,))], (2, 3, 1)),
    "permute": ([(aten.permute.default, ([1, 0],))], (3, 2)),
    "transpose from the end": ([EACH_TWICE, (aten.transpose.int, (-1, 0))], (3, 2)),
    "repeat": ([(aten.repeat.default, ([1, 3],))], (2, 3)),
    "repeat in front": ([(aten.repeat.default, ([4, 1, 2],))], (1, 2, 3)),
    "expand": ([(aten.unsqueeze.default, (0,)), (aten.expand.default, ([4, 2, -1],))], (1, 2, 3)),
    "expand in front": ([(aten.expand.default, ([5, -1, 3],))], (1, 2, 3)),
    "each twice": ([EACH_TWICE], (2, 3)),
    "merged": ([ROWS_TWICE, (aten.reshape.default, ([12],))], (6,)),
    "one size is left out": ([ROWS_TWICE, (aten.reshape.default, ([-1],))], (6,)),
    "the first size is left out": ([ROWS_TWICE, (aten.view.default, ([-1, 3, 1],))], (2, 3, 1)),
    "a size among others is left out": ([ROWS_TWICE, (aten._unsafe_view.default, ([4, -1, 3],))], (2, 1, 3)),
    "split by repetitions": ([ROWS_TWICE, (aten.reshape.default, ([2, 2, 3],))], (1, 2, 3)),
    "split within": ([EACH_TWICE, (aten.reshape.default, ([2, 2, 3],))], (2, 1, 3)),
    "what does not repeat": ([(aten.reshape.default, ([3, 2],))], (3, 2)),
    "many into many": ([(aten.reshape.default, ([1, 3, 1, 2, 1],))], (1, 3, 1, 2, 1)),
    "axes of 1": ([(aten.reshape.default, ([2, 3, 1, 1],)), (aten.reshape.default, ([2, 3],))], (2, 3)),
    "flatten": ([ROWS_TWICE, (aten.flatten.using_ints, ())], (6,)),
    "flatten some": (
        [(aten.reshape.default, ([2, 1, 3, 1],)), (aten.flatten.using_ints, (1, -2))], (2, 3, 1),
    ),
    "an operator": ([EACH_TWICE, (aten.remainder.Scalar, (3,))], (1, 3)),
    "the same again": ([EACH_TWICE, (aten.clone.default, ()), (aten.contiguous.default, ())], (2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("how", ONCE)
def test_each_slice_is_held_once(how: str) -> None:
    """once: the shape of what is held after the last of the operators, from a tensor [2, 3] on."""
    steps, once = ONCE[how]
    _, found = run(steps, torch.arange(6).reshape(2, 3))
    assert isinstance(found, Repeated)
    assert found.once.shape == once


UNKNOWN: dict[str, tuple[list[tuple[Any, tuple[object, ...]]], torch.Tensor]] = {
    "a split across repetitions": ([EACH_TWICE, (aten.reshape.default, ([2, 2, 3],)),
                                    (aten.reshape.default, ([6, 2],))], torch.arange(6).reshape(2, 3)),
    "no axis of repetition": ([(aten.repeat_interleave.self_int, (2,))], torch.arange(6).reshape(2, 3)),
    "nothing": ([(aten.reshape.default, ([0, 2],))], torch.zeros(0, 3)),
    "another operator": ([EACH_TWICE, (aten.cumsum.default, (0,))], torch.arange(6).reshape(2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("how", UNKNOWN)
def test_what_does_not_keep_slices_is_made_whole(how: str) -> None:
    steps, start = UNKNOWN[how]
    _, found = run(steps, start)
    assert isinstance(found, torch.Tensor)


def test_slices_that_meet_are_compared_once() -> None:
    """Two values that repeat in other ways, and a number: what is held are the pairs that meet."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    call = graph.call_function
    rows = call(aten.repeat_interleave.self_int, (x, 3, 0))  # 0 0 0 1 1 1
    other = call(aten.repeat.default, (y, [2, 1]))  # a b c a b c, of which a and c are equal
    graph.output((call(aten.add.Tensor, (rows, other)), call(aten.mul.Tensor, (2, rows))))
    module = fx.GraphModule(torch.nn.Module(), graph)
    given = torch.tensor([[10, 20], [30, 40]]), torch.tensor([[1], [2], [1]])
    for found, wanted, once in zip(run_repeated(module, given), module(*given), [(4, 2), (2, 2)], strict=True):
        assert torch.equal(found.whole(), wanted)
        assert found.once.shape == once


def test_a_value_with_some_axes_whole() -> None:
    value = Repeated(torch.arange(6).reshape(2, 3), (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 2, 2])))
    assert value.shape == (4, 5)
    assert torch.equal(value.whole(()), value.once)
    assert torch.equal(value.whole((0,)), value.once.repeat(2, 1))
    assert torch.equal(value.whole((1,)), value.once[:, [0, 0, 1, 2, 2]])


@pytest.mark.parametrize(("largest", "axes", "fits"), [(20, None, True), (19, None, False), (12, (0,), True)])
def test_a_value_is_made_whole_up_to_a_size(largest: int, axes: tuple[int, ...] | None, fits: bool) -> None:
    value = Repeated(torch.arange(6).reshape(2, 3), (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 2, 2])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mccompile.lowering.repeated.LARGEST", largest)
        if fits:
            assert value.whole(axes).numel() == largest
        else:
            with pytest.raises(TooLarge):
                value.whole(axes)


class Held(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.register_buffer("table", torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize(("once", "places"), [([7, 8, 9, 6], [3, 1, 2, 0]), ([7, 8, 9, 6, 5], [0, 1, 2, 3])])
def test_slices_that_stand_elsewhere_are_not_taken_for_those_that_lie_in_order(
    once: list[int], places: list[int]
) -> None:
    value = Repeated(torch.tensor(once), (torch.tensor(places),))
    graph = fx.Graph()
    graph.output((graph.call_function(aten.reshape.default, (graph.placeholder("x"), [2, 2])),))
    (found,) = run_repeated(fx.GraphModule(torch.nn.Module(), graph), (value,))
    assert torch.equal(found, torch.tensor([once[at] for at in places]).view(2, 2))


def test_other_nodes_are_an_error_of_ours() -> None:
    graph = fx.Graph()
    graph.output((graph.call_method("neg", (graph.placeholder("x"),)),))
    with pytest.raises(AssertionError, match="a prelude graph has no call_method"):
        run_repeated(fx.GraphModule(torch.nn.Module(), graph), (torch.ones(1),))


def test_tensors_of_the_module_and_lists_of_values_are_taken() -> None:
    """What a graph makes on another device is made on the host."""
    graph = fx.Graph()
    n = graph.placeholder("n")
    call = graph.call_function
    elsewhere = call(aten.arange.default, (n,), {"device": torch.device("meta")})
    rows = call(aten.repeat_interleave.self_int, (graph.get_attr("inner.table"), 2, 0))
    size = call(aten.sym_size.int, (rows, 0))
    graph.output((call(aten.cat.default, ([rows, rows], 1)), elsewhere, size))
    joined, counted, length = run_repeated(fx.GraphModule(Held(), graph), (4,))
    assert torch.equal(joined, torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]))
    assert torch.equal(counted, torch.arange(4))
    assert length == 4


def test_values_of_another_device_are_not_waited_for() -> None:
    """Their size alone may be asked for."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 1))
    graph.output((size,))
    elsewhere = torch.zeros(2, 3, device="meta")
    assert run_repeated(fx.GraphModule(torch.nn.Module(), graph), (elsewhere,)) == [3]
    graph.erase_node(graph.output_node())
    graph.output((graph.call_function(aten.neg.default, (x,)),))
    with pytest.raises(TooLarge):
        run_repeated(fx.GraphModule(torch.nn.Module(), graph), (elsewhere,))
