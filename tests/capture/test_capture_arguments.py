"""Forwards that are told lists of any length, and that write numbers into their arguments: autoregressive models."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

from mccompile import CompiledModel, api
from mccompile.capture import flat_inputs
from mccompile.capture.arguments import GivenList, Written, numbers_written
from mccompile.capture.errors import CallError, ExportError
from mccompile.diagnostics.source import Source
from mccompile.runtime.clock import ChunkTime, Timeline, steps_in_order
from mccompile.runtime.compiled import CLEAN_PASS
from tests.capture.test_capture_alone import DIM, EVERY_SECOND, GRID, STEPS, Block


class Chunked(nn.Module):
    """Told the lengths of its chunks; reads the keys of those before the last, and notes how many.

    With `fill` it writes into the keys and returns nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv3d(2, DIM, (1, 2, 2), (1, 2, 2)), nn.Linear(DIM, 8)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, chunks: list[int], keys: dict[str, torch.Tensor],
        flags: dict[str, object],
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        self.note(flags, chunks)
        if flags["fill"]:
            keys["all"][:, : x.shape[1]] = x
            return None, keys
        text = keys["all"][:, : int(str(flags["count"]))] + timestep[:, None, None] / 1000
        for block in self.blocks:
            x, text = block(x, text)
        return self.head(x), keys

    def note(self, flags: dict[str, object], chunks: list[int]) -> None:
        flags["count"] = sum(chunks[:-1])


class Counting(Chunked):
    """Counts on from what it finds."""

    def note(self, flags: dict[str, object], chunks: list[int]) -> None:
        flags["count"] = flags.get("count", sum(chunks[:-1])) if "count" not in flags else sum(chunks[:-1]) + 1


class Looking(Chunked):
    """Does something else where it finds a number, whatever it is."""

    def note(self, flags: dict[str, object], chunks: list[int]) -> None:
        flags["fill"] = flags["fill"] or "count" in flags
        super().note(flags, chunks)


class Copying(Chunked):
    """Writes into copies of its own."""

    def note(self, flags: dict[str, object], chunks: list[int]) -> None:
        for own in (copy.copy(flags), copy.deepcopy(flags), flags.copy()):
            super().note(own, chunks)
        super().note(flags, chunks)


class Placing(Chunked):
    """Notes in a dict that is not there in every call."""

    def note(self, flags: dict[str, object], chunks: list[int]) -> None:
        flags["count"] = sum(chunks[:-1])
        flags["inner"]["place"] = len(chunks)  # type: ignore[index]


def call(chunks: list[int], height: int = 4, step: int = 0, fill: bool = False, **flags: object) -> dict[str, object]:
    generator = torch.Generator().manual_seed(step)
    return {
        "hidden_states": torch.randn(1, 2, chunks[-1], height, 6, generator=generator),
        "timestep": torch.tensor([GRID.timesteps[step]]), "chunks": chunks,
        "keys": {"all": torch.randn(1, 40, DIM, generator=torch.Generator().manual_seed(9))},
        "flags": {"fill": fill, **flags},
    }  # fmt: skip


@cache
def model_of(kind: type[Chunked]) -> Chunked:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval().requires_grad_(False)


@cache
def prepared() -> api.Prepared:
    return api.prepare(model_of(Chunked), probe=call([2, 3, 4]), second=call([2, 3, 4, 6], 8))


def compiled(policy: str = EVERY_SECOND) -> tuple[CompiledModel, Timeline]:
    clock = Timeline("run", GRID, steps_in_order(GRID))
    text = Source("test.policy", policy) if "{" in policy else policy
    return api.compile(model_of(Chunked), text, captured=prepared(), clock=clock), clock  # type: ignore[arg-type]


def test_a_list_of_another_length_is_one_input() -> None:
    captured = prepared().model
    assert captured.lists == ("chunks",)
    assert [str(one) for one in captured.written] == ["flags.count"]
    assert "flags.count" in captured.opaque
    inputs = prepared().calls[0]
    assert inputs["chunks"] == GivenList((2, 3, 4), list)


@pytest.mark.parametrize("chunks", [[4], [2, 3], [1, 1, 1, 1, 5]])
def test_every_call_is_the_models_own_and_tells_the_caller_what_it_wrote(chunks: list[int]) -> None:
    model, (stand_in, clock) = model_of(Chunked), compiled("compute")
    for flags in ({}, {"count": 77}):  # the dict of the step before may be given again
        given, own = call(chunks, 6, **flags), call(chunks, 6, **flags)
        found, keys = stand_in(**given)
        wanted, _ = model(**own)
        assert torch.equal(found, wanted)
        assert keys["all"] is given["keys"]["all"]  # type: ignore[index]
        assert given["flags"] == own["flags"]
        assert given["chunks"] == chunks
    assert clock.row == 0


def test_a_reused_step_tells_the_same_numbers() -> None:
    stand_in, clock = compiled()
    flags: dict[str, object] = {"fill": False}
    for clock.row in range(STEPS):
        stand_in(**{**call([2, 3], 6, clock.row), "flags": flags})
        assert flags == {"fill": False, "count": 2}
        del flags["count"]
    assert [event.action for event in stand_in.events] == ["full", "reuse", "full", "reuse"]


def test_a_pass_over_finished_chunks_of_another_form_is_the_models_own() -> None:
    """It fills the keys of a chunk, and says so; the first call of a step of another form is refused."""
    stand_in, clock = compiled()
    given, own = call([2, 3], 6, fill=True), call([2, 3], 6, fill=True)
    with pytest.raises(CallError, match="flags_fill"):
        stand_in(**given)
    assert torch.equal(given["keys"]["all"], own["keys"]["all"])  # type: ignore[index]  # a refused call writes nothing
    clock.rows = (*clock.rows, (ChunkTime(0, "finished", 0, clean=True),))
    clock.row = STEPS
    assert stand_in(**given)[0] is None
    model_of(Chunked)(**own)
    assert torch.equal(given["keys"]["all"], own["keys"]["all"])  # type: ignore[index]
    assert [(event.action, event.why) for event in stand_in.events] == [("full", CLEAN_PASS)]


def test_a_number_that_stood_there_before_is_found_too() -> None:
    """The recorded calls may be of a later step, whose dict has the number already."""
    probe, second = call([2, 3, 4], count=5), call([2, 3, 4, 6], 8, count=9)
    found = api.prepare(model_of(Chunked), probe=probe, second=second).model
    assert found.written == (Written(("flags", "count"), 5),)
    assert probe["flags"] == {"fill": False, "count": 5}


@pytest.mark.parametrize(
    ("kind", "chunks", "fill", "named"),
    [
        (Chunked, [2, 3, 4], True, "`keys.all`"), (Counting, [2, 3, 4], False, "`flags.count`, and reads"),
        (Looking, [2, 3, 4], False, "`flags.(fill|count)`"),
    ],
)  # fmt: skip
def test_what_is_written_otherwise_is_refused(kind: type[Chunked], chunks: list[int], fill: bool, named: str) -> None:
    with pytest.raises(ExportError, match=f"writes into its argument {named}"):
        api.prepare(model_of(kind), probe=call(chunks, fill=fill), second=call([*chunks, 6], 8, fill=fill))


def test_copies_of_a_dict_are_the_forwards_own() -> None:
    found = numbers_written(model_of(Copying), call([2, 3, 4]))
    assert [str(one) for one in found] == ["flags.count"]


def test_a_dict_that_a_call_lacks_is_refused_by_name() -> None:
    model = model_of(Placing)
    captured = api.prepare(model, probe=call([2, 3, 4], inner={}), second=call([2, 3, 4, 6], 8, inner={})).model
    flat_inputs(captured, call([2, 3], 6, inner={"place": 3}))
    with pytest.raises(CallError, match=r"`flags\.inner`"):
        flat_inputs(captured, call([2, 3], 6))
