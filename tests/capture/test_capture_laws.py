"""Laws of a captured model, on tiny random models of many families and with no line about any of them.

Identity: prelude, full blocks and postlude give the eager model's outputs, bit for bit.
Rows: `partial(S)` gives the rows S of `full`, for any S. Gather: only moves rows, so exactly.
Kept: unselected keys and values come from the buffers, nothing else of the unselected tokens matters.
All of them at the two sizes of the capture and at a third.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from mccompile.capture import flat_inputs
from tests.capture.conftest import Specimen
from tests.capture.laws import gathered_rows, run_kept, run_partial, select, selections, streams_of
from tests.zoo import FAMILIES, tokens_of

ROW_FAMILIES = [name for name in FAMILIES if name != "toy_convolution"]
TOLERANCE = 1e-12  # float64

every_family = pytest.mark.parametrize("specimen", list(FAMILIES), indirect=True)
every_row_family = pytest.mark.parametrize("specimen", ROW_FAMILIES, indirect=True)


@every_family
def test_identity(specimen: Specimen) -> None:
    for size in specimen.family.sizes:
        call = specimen.family.call(size, seed=1)
        with torch.no_grad():
            eager = pytree.tree_flatten(specimen.model(**call))[0]
            exported = pytree.tree_flatten(specimen.captured.module(**call))[0]
        parts = specimen.run(call).outputs
        for one, two, three in zip(eager, exported, parts, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(two, three)


@every_family
def test_blocks_of_one_graph_are_one_kind(specimen: Specimen) -> None:
    assert len(specimen.captured.kinds) == specimen.family.kinds


@every_row_family
def test_nothing_is_refused(specimen: Specimen) -> None:
    assert [r for r in specimen.captured.refusals if r.site != "grid"] == []
    assert all(kind.partial is not None and kind.buffers for kind in specimen.captured.kinds)


@every_row_family
def test_gather_only_moves_rows(specimen: Specimen) -> None:
    captured = specimen.captured
    for size in specimen.family.sizes:
        inputs = flat_inputs(captured, specimen.family.call(size, seed=2))
        run = specimen.run(specimen.family.call(size, seed=2))
        for index in selections(tokens_of(size)):
            rows = gathered_rows(captured, inputs, index)
            for port in captured.shared:
                full = run.values[port.name]
                if port.name in captured.gathered and port.token_axis is not None:
                    expected = full.index_select(port.token_axis, rows[port.rows])
                    assert torch.equal(rows[port.name], expected), port.name


@every_row_family
def test_partial_rows_are_full_rows(specimen: Specimen) -> None:
    captured = specimen.captured
    for size in specimen.family.sizes:
        call = specimen.family.call(size, seed=3)
        inputs, run = flat_inputs(captured, call), specimen.run(call)
        for index in selections(tokens_of(size)):
            rows = gathered_rows(captured, inputs, index)
            for site in captured.blocks:
                kept = [b.clone() for b in run.buffers[site.index]]
                for spec, buffer in zip(captured.kinds[site.kind].buffers, kept, strict=True):
                    buffer.index_fill_(spec.token_axis, rows[spec.rows], torch.nan)
                outputs = run_partial(captured, site, streams_of(run, site), rows, kept)
                for name, given in zip(site.streams_out, outputs, strict=True):
                    expected = select(captured, name, run.values[name], rows)
                    torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)
                for buffer, full in zip(kept, run.buffers[site.index], strict=True):
                    torch.testing.assert_close(buffer, full, rtol=0, atol=TOLERANCE)


@every_row_family
def test_unselected_tokens_matter_through_the_buffers_only(specimen: Specimen) -> None:
    captured = specimen.captured
    size = specimen.family.sizes[2]
    call = specimen.family.call(size, seed=4)
    inputs, old = flat_inputs(captured, call), specimen.run(call)
    index = selections(tokens_of(size))[2]
    rows = gathered_rows(captured, inputs, index)
    for site in captured.blocks:
        generator = torch.Generator().manual_seed(5)
        moved = [x + torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in streams_of(old, site)]
        kept = old.buffers[site.index]
        expected = run_kept(captured, site, moved, old, rows, kept)
        given = run_partial(captured, site, moved, rows, [b.clone() for b in kept])
        for name, one, two in zip(site.streams_out, given, expected, strict=True):
            torch.testing.assert_close(one, select(captured, name, two, rows), rtol=0, atol=TOLERANCE)


@every_family
def test_a_value_depends_on_no_other_input(specimen: Specimen) -> None:
    captured = specimen.captured
    call = specimen.family.call(specimen.family.sizes[0], seed=6)
    inputs = flat_inputs(captured, call)
    base = captured.prelude(*inputs)
    names = (*captured.entry, *(p.name for p in captured.shared))
    ports = {p.name: p for p in (*captured.streams, *captured.shared)}
    for i, changed in enumerate(captured.inputs):
        if not isinstance(inputs[i], torch.Tensor):
            continue
        other = (inputs[i] + 1) if inputs[i].dtype != torch.bool else ~inputs[i]
        for name, one, two in zip(names, base, captured.prelude(*inputs[:i], other, *inputs[i + 1 :]), strict=True):
            if changed not in ports[name].depends and isinstance(one, torch.Tensor):
                assert torch.equal(one, two), (name, changed)
