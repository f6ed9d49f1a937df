"""What lies around a token, rectangles of a frame and means over steps: the graph, and whole runs, against PyTorch."""

from __future__ import annotations

from typing import Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.lowering.frames import area, around
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.decision import Observe
from tests.runtime.test_forecast import GRID, STEPS, call

ROWS, COLUMNS = 4, 4  # of the frames that `call` makes, in tokens
FRAMES = 3


def maps(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(2, 3, 2, rows * columns, generator=torch.Generator().manual_seed(rows))


def pooled(value: torch.Tensor, rows: int, columns: int, by: int, how: str) -> torch.Tensor:
    """The same by PyTorch's pooling of images."""
    images = value.reshape(-1, 1, rows, columns)
    if how == "max":
        found = torch.nn.functional.max_pool2d(images, 2 * by + 1, stride=1, padding=by)
    else:
        found = torch.nn.functional.avg_pool2d(images, 2 * by + 1, stride=1, padding=by, count_include_pad=False)
    return found.reshape(value.shape)


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize(("rows", "columns", "by"), [(5, 7, 1), (5, 7, 3), (4, 2, 2), (1, 6, 1)])
def test_around(how: str, rows: int, columns: int, by: int) -> None:
    value, by = maps(rows, columns), min(by, 3)
    found = around(how, value, by, torch.zeros(rows, columns))  # type: ignore[arg-type]
    padded = min(by, rows, columns)  # PyTorch pads no more than half of its window
    assert padded == by or rows == 1
    if rows == 1:
        pool = torch.nn.functional.max_pool1d if how == "max" else torch.nn.functional.avg_pool1d
        more = {} if how == "max" else {"count_include_pad": False}
        wanted = pool(value.reshape(-1, 1, columns), 2 * by + 1, stride=1, padding=by, **more).reshape(value.shape)
    else:
        wanted = pooled(value, rows, columns, by, how)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_an_area() -> None:
    """A token belongs to it where its centre does."""
    found = area((0.25, 0.75), (0.0, 0.5), torch.zeros(4, 5)).reshape(4, 5)
    wanted = torch.zeros(4, 5)
    wanted[1:3, :2] = 1  # centres of the columns: 10%, 30%, 50%, ...
    assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own use of it
def test_eager_and_inductor_agree() -> None:
    """All in one graph, at two sizes, the second of which compiles nothing."""

    def graph(value: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        wide = around("max", value, 1, places)
        return around("mean", wide, 2, places) * area((0.2, 0.8), (0.1, 0.6), places)

    compiled = torch.compile(graph, dynamic=True, fullgraph=True)
    for rows, columns in ((4, 6), (5, 9)):
        value, places = maps(rows, columns), torch.zeros(rows, columns)
        torch.testing.assert_close(compiled(value, places), graph(value, places), rtol=1e-6, atol=1e-6)


def ran(
    model: WanTransformer3DModel, prepared: api.Prepared, text: str, backend: Literal["eager", "inductor"] = "eager"
) -> tuple[list[torch.Tensor], CompiledModel]:
    """The outputs, and the model whose runner has the mask of each call."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(model, Source("p.policy", text), backend=backend, captured=prepared, clock=clock)
    made.runner.masks = []
    found = []
    for clock.row in range(STEPS):
        found.append(made(**call(clock.row))[0])
    return found, made


def tokens_of(latents: torch.Tensor) -> torch.Tensor:
    """[1, C, frames, height, width] as [frames, rows, columns, numbers of a patch]."""
    return latents.unfold(3, 2, 2).unfold(4, 2, 2)[0].permute(1, 2, 3, 0, 4, 5).reshape(FRAMES, ROWS, COLUMNS, -1)


TOP = """policy p {{
  {signals}
  phase first for 2 steps {{ compute }}
  phase rest              {{ compute top 50% of tokens by score }}
  layers {layers}
}}
"""


def first_half(score: torch.Tensor) -> set[int]:
    flat = score.flatten()
    return {int(i) for i in torch.argsort(-flat, stable=True)[: len(flat) // 2]}


def test_a_run_by_what_lies_around(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """The tokens around those whose last prediction is most uneven, and those of a region of interest."""
    score = "dilate(deviation(before(output), over = token)) + 0.1 * roi(rows = [0%, 50%], columns = [50%, 100%])"
    text = TOP.format(signals=f"signal score = {score}", layers="model { keep output }")
    outputs, made = ran(small_wan, captured_wan, text)
    for row in range(2, STEPS):
        uneven = tokens_of(outputs[row - 1]).var(-1, correction=0).sqrt()
        near = torch.nn.functional.max_pool2d(uneven.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
        near[:, :2, 2:] += 0.1
        mask = made.runner.masks[row].reshape(-1)
        assert set(np.flatnonzero(mask)) == first_half(near)


def test_a_mean_of_motion_follows_every_step(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """Also steps whose own rule reads no motion: those of the first phase."""
    signals = """signal motion = frame_diff(block_output)
  signal score = smooth(motion, by = 50%) + average(motion, over = 3)"""
    text = TOP.format(signals=signals, layers="blocks[*] { keep output }")
    streams: list[torch.Tensor] = []
    run = Observe.run

    def watched(self: Observe, want: np.ndarray, params: torch.Tensor, output: torch.Tensor, *more: object) -> None:
        assert want.all()
        streams.append(output.detach().clone())
        run(self, want, params, output, *more)  # type: ignore[arg-type]

    with patch.object(Observe, "run", watched):
        _, made = ran(small_wan, captured_wan, text)
    motions = [torch.ones(FRAMES, ROWS * COLUMNS)]  # what is not known yet weighs 1
    for stream in streams:
        h = stream.reshape(FRAMES, ROWS * COLUMNS, -1)
        moved = (h[1:] - h[:-1]).abs().mean(-1) / (h[:-1].abs().mean(-1) + 1e-8)
        motions.append(torch.cat([moved[:1], moved]))
    smooth = motions[0]
    for row in range(1, STEPS):
        smooth = 0.5 * smooth + 0.5 * motions[row]
        last = motions[max(row - 2, 0) : row + 1]
        score = smooth + sum(last) / len(last)
        if row > 1:
            assert set(np.flatnonzero(made.runner.masks[row].reshape(-1))) == first_half(score)


EVERYTHING = """policy p {
  signal raw    = frame_diff(block_output) | min_max(floor = 60%)
  signal motion = smooth(raw, by = 80%) | dilate(by = 1) | blur(by = 2)
  signal face   = roi(rows = [20%, 60%], columns = [30%, 70%])
  signal drift  = rel_l1(latent) | average(over = 4)
  signal pace   = pick(drift, [0.03, 0.05], [0.5, 1, 2])
  signal alive  = deviation(before(output), over = token)
  phase first for 2 steps { compute }
  phase cache { reuse token while accumulate(pace * drift * max(motion, 2 * face) * (1 + 1 / (1 + alive))) < 0.3 }
  layers blocks[*] { keep residual }
}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_graphs_decide_as_eager_ones(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    """All functions in one policy, whole runs: the same tokens at every step."""
    outputs, made = zip(*(ran(small_wan, captured_wan, EVERYTHING, b) for b in ("eager", "inductor")), strict=True)
    masks = [one.runner.masks for one in made]
    assert any(0 < mask.mean() < 1 for mask in masks[0])
    for row in range(STEPS):
        np.testing.assert_array_equal(masks[0][row], masks[1][row])
        torch.testing.assert_close(outputs[0][row], outputs[1][row], rtol=1e-4, atol=1e-5)
