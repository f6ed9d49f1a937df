"""Each law is seen to fail: deliberately wrong gathers and partial forms are caught by `verify`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from mccompile.capture import CapturedModel, flat_inputs
from mccompile.capture.errors import IdentityError
from mccompile.capture.verify import check_identity, check_rows, random_selection
from tests.capture.conftest import Specimen

aten = torch.ops.aten
FAMILY = "skyreels"  # block-causal mask, rotary tables, modulation per frame


class Bent(nn.Module):
    """A gather part whose outputs go through `bend(captured, outputs by name, full values by name)`."""

    def __init__(self, captured: CapturedModel, full: dict[str, object], bend: Callable[..., None]) -> None:
        super().__init__()
        self.captured, self.full, self.bend = captured, full, bend

    def forward(self, index: torch.Tensor, *sources: object) -> tuple[object, ...]:
        names = (*self.captured.gathered, *self.captured.row_keys)
        rows = dict(zip(names, self.captured.gather(index, *sources), strict=True))
        self.bend(self.captured, rows, self.full)
        return tuple(rows.values())


def first_rows(value: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    return value.narrow(axis, 0, count)


def rows_off_by_one(captured: CapturedModel, rows: dict[str, torch.Tensor], full: dict[str, torch.Tensor]) -> None:
    count = full[captured.streams[0].name].shape[1]
    rows["video"] = (rows["video"] + 1) % count


def _ungathered(wanted: str) -> Callable[[CapturedModel, dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """The first n rows instead of the selected ones, for the shared values of one kind."""

    def bend(captured: CapturedModel, rows: dict[str, torch.Tensor], full: dict[str, torch.Tensor]) -> None:
        for port in captured.shared:
            if port.name in rows and port.token_axis is not None:
                kind = "mask" if full[port.name].dtype == torch.bool else "rotary" if not port.depends else "modulation"
                if kind == wanted:
                    rows[port.name] = first_rows(full[port.name], port.token_axis, len(rows["video"]))

    return bend


GATHERS = {
    "rows off by one": rows_off_by_one,
    "mask rows not gathered": _ungathered("mask"),
    "rotary rows not gathered": _ungathered("rotary"),
    "modulation rows not gathered": _ungathered("modulation"),
}


def keys_before_rotation(graph: fx.Graph) -> None:
    """Writes the keys as they were before `empty_like` and the copies that rotate them."""
    write = next(n for n in graph.nodes if n.target is aten.index_copy_.default)
    permuted = write.args[3]
    rotated = permuted.args[0]
    assert rotated.target is aten.empty_like.default
    with graph.inserting_before(write):
        write.update_arg(3, graph.call_function(permuted.target, (rotated.args[0], *permuted.args[1:])))


def keys_not_written(graph: fx.Graph) -> None:
    """Attends to what the buffers held before."""
    for write in [n for n in graph.nodes if n.target is aten.index_copy_.default]:
        write.replace_all_uses_with(write.args[0])
        graph.erase_node(write)


def keys_and_values_swapped(graph: fx.Graph) -> None:
    first, second, *_ = [n for n in graph.nodes if n.target is aten.index_copy_.default]
    one, two = first.args[3], second.args[3]
    for node in (first, second):
        second.append(node)
    first.update_arg(3, two)
    second.update_arg(3, one)


PARTIALS = [keys_before_rotation, keys_not_written, keys_and_values_swapped]


def judged(specimen: Specimen, change: Callable[[CapturedModel, dict[str, object]], CapturedModel]) -> CapturedModel:
    """What `check_rows` leaves of a changed capture."""
    call = specimen.family.call(specimen.family.sizes[0], seed=7)
    run = specimen.run(call)
    inputs = flat_inputs(specimen.captured, call)
    count = run.values[specimen.captured.streams[0].name].shape[1]
    index = random_selection(count, 0, torch.device("cpu"))
    return check_rows(change(specimen.captured, run.values), inputs, run, index)


def test_the_true_passes_hold(specimen_of: Callable[[str], Specimen]) -> None:
    left = judged(specimen_of(FAMILY), lambda captured, _: captured)
    assert all(kind.partial is not None for kind in left.kinds)
    assert left.refusals == specimen_of(FAMILY).captured.refusals


@pytest.mark.parametrize("fault", list(GATHERS))
def test_wrong_gathers_are_caught(fault: str, specimen_of: Callable[[str], Specimen]) -> None:
    left = judged(
        specimen_of(FAMILY),
        lambda captured, full: replace(captured, gather=Bent(captured, full, GATHERS[fault])),
    )
    assert [kind.partial for kind in left.kinds] == [None]
    assert left.refusals[-1].site == "blocks.0"


@pytest.mark.parametrize("fault", PARTIALS, ids=lambda fault: fault.__name__)
def test_wrong_partial_forms_are_caught(
    fault: Callable[[fx.Graph], None], specimen_of: Callable[[str], Specimen]
) -> None:
    def change(captured: CapturedModel, full: dict[str, object]) -> CapturedModel:
        wrong = copy.deepcopy(captured.kinds[0].partial)
        fault(wrong.graph)
        wrong.graph.lint()
        wrong.module.recompile()
        return replace(captured, kinds=(replace(captured.kinds[0], partial=wrong),))

    left = judged(specimen_of(FAMILY), change)
    assert [kind.partial for kind in left.kinds] == [None]
    assert "differ" in left.refusals[-1].reason


def test_a_wrong_output_is_an_identity_error(specimen_of: Callable[[str], Specimen]) -> None:
    specimen = specimen_of(FAMILY)
    call = specimen.family.call(specimen.family.sizes[0], seed=7)
    run = specimen.run(call)
    wrong = replace(run, outputs=tuple(x.roll(1, 2) for x in run.outputs))
    with pytest.raises(IdentityError, match="MC0404"):
        check_identity(specimen.captured, specimen.model, call, flat_inputs(specimen.captured, call), wrong)
