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


@settings(max_examples=150, deadline=None)
@given(chains())
def test_every_chain_of_operators_gives_what_torch_gives(steps: list[tuple[Any, tuple[object, ...]]]) -> None:
    graph = fx.Graph()
    value = graph.placeholder("x")
    for target, more in steps:
        source = graph.call_function(aten.contiguous.default, (value,)) if target is aten.view.default else value
        value = graph.call_function(target, (source, *more))
    graph.output((graph.call_function(aten.le.Tensor, (value, value)), value))
    module = fx.GraphModule(torch.nn.Module(), graph)
    start = torch.arange(6).reshape(2, 3)
    for found, wanted in zip(run_repeated(module, (start,)), module(start), strict=True):
        assert torch.equal(found.whole() if isinstance(found, Repeated) else found, wanted)
