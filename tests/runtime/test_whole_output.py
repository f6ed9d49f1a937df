"""The model's own output as what is kept: of tokens that were not computed, the last one stands in."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mccompile import ir
from mccompile.capture.types import TokenGrid
from mccompile.lowering.sources import Located, ModelOutput
from mccompile.policy.phases import Grid
from mccompile.runtime.bands import BandWeights
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.layout import Layout
from mccompile.runtime.staging import Staging
from mccompile.runtime.store import Memory
from mccompile.runtime.whole import WholeOutput

CHUNKS = ChunkTime(1, "active", 0), ChunkTime(2, "active", 0)
MOMENT = Moment("run", 0, "cond", Grid(1, (0.0,), (0.0,)), CHUNKS, 4)
LAYOUT = Layout(batch=2, chunks=2, frames=1, positions=6, rows=2)
SIZE = (2, 3, 2, 4, 6)  # samples, channels, frames, rows and columns of 2 x 2 cells
ALL = np.ones(LAYOUT.cells, bool)


def latents(seed: int) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


class Final:
    """The final layers: they give what they were told to, and count how often they run."""

    def __init__(self) -> None:
        self.output, self.count = latents(0), 0

    def run(self, *more: object) -> tuple[torch.Tensor]:
        self.count += 1
        return (self.output,)


def whole(keep: Literal["residual", "output", "gap"], kept: ir.KeptDtype = "auto", away: bool = False) -> WholeOutput:
    grid = TokenGrid("latent", (2, 3, 4), (1, 2, 2))
    where = Located("output", ModelOutput(3), "latent", 2, (1, 2, 2))
    blocks: Any = SimpleNamespace(
        staging=Staging(torch.device("cpu")) if away else None, cache=SimpleNamespace(residual=kept),
        settled=[], settle=lambda: blocks.settled.append(1), kept_values=lambda value, like: value.to(like.dtype),
    )  # fmt: skip
    lowered: Any = SimpleNamespace(captured=SimpleNamespace(grid=grid))
    return WholeOutput(keep, "", where, lowered, Final(), blocks)  # type: ignore[arg-type]


def run(
    made: WholeOutput, memory: Memory, mask: np.ndarray, latent: torch.Tensor, output: torch.Tensor, **more: Any
) -> torch.Tensor:
    made.postlude.output = output  # type: ignore[attr-defined]
    condition = torch.full((2, 1, *SIZE[2:]), 9.0)  # channels of its own lie behind those of the latent
    inputs = {"latent": torch.cat([latent, condition], 1)}
    (found,) = made.results({}, {}, inputs, mask, MOMENT, LAYOUT, memory, **more)
    assert isinstance(found, torch.Tensor)
    return found


def cells(mask: np.ndarray) -> torch.Tensor:
    """A mask of tokens [B, G, 1, P] as one of latent cells."""
    found = torch.from_numpy(mask).view(2, 1, 2, 2, 3)
    return found.repeat_interleave(2, 3).repeat_interleave(2, 4).expand(SIZE)


SOME = np.random.default_rng(0).random(LAYOUT.cells) < 0.5


@pytest.mark.parametrize("keep", ["residual", "output", "gap"])
def test_tokens_that_were_not_computed_have_their_last_output(keep: Literal["residual", "output", "gap"]) -> None:
    """Or what it differed by from the latent input then, or from the other branch, on top of that of now."""
    made, memory = whole(keep), Memory()

    def base(seed: int) -> torch.Tensor:
        return latents(seed) if keep != "output" else torch.zeros(SIZE)

    def call(mask: np.ndarray, seed: int, output: torch.Tensor) -> torch.Tensor:
        beside = {"beside": latents(seed)} if keep == "gap" else {}
        return run(made, memory, mask, latents(seed if keep == "residual" else 99), output, **beside)

    first, second = latents(10), latents(11)
    assert call(ALL, 1, first) is first
    known = first - base(1)
    found = call(SOME, 2, second)
    torch.testing.assert_close(found, torch.where(cells(SOME), second, base(2) + known))
    known = torch.where(cells(SOME), second - base(2), known)
    found = call(~ALL, 3, latents(12))
    torch.testing.assert_close(found, base(3) + known)
    assert made.postlude.count == 2  # type: ignore[attr-defined]


def test_results_are_kept_of_the_chunks_of_the_call_and_not_of_copies() -> None:
    made, memory = whole("output"), Memory()
    run(made, memory, ALL, latents(1), latents(2))
    assert made.blocks.settled == [1]  # type: ignore[attr-defined]  # else the host would write what is on its way
    assert memory.outputs is not None
    assert (memory.outputs.shape, [bool(memory.outputs[:, g].any()) for g in range(4)]) == (
        (2, 4, 1, 6, 12), [False, True, True, False],
    )  # fmt: skip
    kept = memory.outputs.clone()
    copied = replace(MOMENT, chunks=(CHUNKS[0], ChunkTime(3, "active", 0, copy_of=2)))
    inputs = {"latent": latents(1)}
    made.postlude.output = torch.zeros(SIZE)  # type: ignore[attr-defined]
    made.results({}, {}, inputs, ALL, copied, LAYOUT, memory)
    assert not memory.outputs[:, 1].any()
    assert torch.equal(memory.outputs[:, 2:], kept[:, 2:])
    (found,) = made.results({}, {}, inputs, ~ALL, copied, LAYOUT, memory)
    torch.testing.assert_close(found, run(made, memory, ~ALL, latents(1), latents(2)))  # a copy has that of its chunk


@pytest.mark.parametrize("away", [False, True])
def test_room_is_made_in_the_form_in_which_results_are_kept(away: bool) -> None:
    inputs = {"latent": latents(1).double()}
    for kept, size, dtype in (
        ("auto", 12, torch.float64),
        ("bfloat16", 12, torch.bfloat16),
        ("float8", 13, torch.uint8),
    ):
        found = whole("output", kept, away).room(inputs, LAYOUT, MOMENT)  # type: ignore[arg-type]
        assert (found.shape, found.dtype, int(found.sum())) == ((2, 4, 1, 6, size), dtype, 0)
    elsewhere = {"latent": latents(1).to("meta")}
    assert whole("output", "auto", away).room(elsewhere, LAYOUT, MOMENT).device.type == ("cpu" if away else "meta")


def test_without_the_other_branch_there_is_no_gap() -> None:
    made, memory, output = whole("gap"), Memory(), latents(2)
    assert run(made, memory, ~ALL, latents(1), output) is output
    assert memory.outputs is None


def test_frequencies_of_what_is_kept_are_weighed() -> None:
    """Twice the low and twice the high ones are twice the output."""
    made, memory = whole("output"), Memory()
    output = run(made, memory, ALL, latents(1), latents(2))
    two = np.full((2, 2), 2.0, np.float32)
    found = run(made, memory, ~ALL, latents(3), latents(4), weights=BandWeights(two, two, 0.4))
    torch.testing.assert_close(found, 2 * output)
    found = run(made, memory, ~ALL, latents(3), latents(4), weights=BandWeights(0 * two, two, 0.0))
    mean = output.mean((3, 4), keepdim=True)
    torch.testing.assert_close(found, 2 * (output - mean))
    bands = ir.Bands(ir.Const(1.0), ir.Const(1.0), ir.Const(0.5))
    nothing: Any = None
    assert replace(made, bands=bands).weights(nothing, MOMENT, nothing, ALL) is None
    assert made.weights(nothing, MOMENT, nothing, ~ALL) is None
