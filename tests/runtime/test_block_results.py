"""Rules look at what one block, or a part of it, has added: the values are those of the model's own modules."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.lowering.errors import LayersNotFound, SourceNotFound
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.decided import Decided
from tests.runtime.conftest import Tiny
from tests.runtime.test_forecast import GRID, STEPS, call
from tests.runtime.test_laws import compiled
from tests.runtime.test_outputs import by_token

TEXT = """policy p {{
  signal moved = rel_l1(kept({of}), kept({of}, 2))
  signal size  = magnitude(kept({of}))
  signal rough = frame_diff(kept({of})) | mean(to = chunk)
  phase first for 3 steps {{ compute }}
  phase cache {{ {whose} reuse chunk while remainder(step, 2) >= 1 and moved < 1000 and size < 1000 and rough < 1000 }}
  {layers}
}}
"""
Values = tuple[float, float, float]


def watch(block: nn.Module, seen: dict[str, torch.Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """The stream of a Wan block between its sublayers: norm2 sees it behind self-attention, norm3 behind the text."""
    return [
        block.register_forward_pre_hook(lambda _, given: seen.update(start=given[0])),
        block.norm2.register_forward_pre_hook(lambda _, given: seen.update(attn=given[0])),
        block.norm3.register_forward_pre_hook(lambda _, given: seen.update(cross=given[0])),
        block.register_forward_hook(lambda _, given, out: seen.update(ffn=out)),
    ]


ENDS = {"": ("start", "ffn"), "attn": ("start", "attn"), "cross": ("attn", "cross"), "ffn": ("cross", "ffn")}


def values(new: torch.Tensor, old: torch.Tensor, chunks: int = 1, frames: int = 3) -> list[Values]:
    """Of each chunk how far [1, tokens, C] has moved, how large it is, and its motion between frames within it."""
    found = []
    for a, b in zip(new[0].chunk(chunks), old[0].chunk(chunks), strict=True):
        tokens = a.reshape(frames, -1, a.size(-1))
        moves = (tokens[1:] - tokens[:-1]).abs().mean(-1) / (tokens[:-1].abs().mean(-1) + 1e-8)
        motion = float(torch.cat([moves[:1], moves]).mean())
        found.append((float((a - b).abs().mean() / (b.abs().mean() + 1e-8)), float(a.abs().mean()), motion))
    return found


def told(decided: list[Decided]) -> list[Values]:
    names = [{row.name: value for row, value in one.values.items()} for one in decided]
    return [(one["moved"], one["size"], one["rough"]) for one in names]


ALL = "layers blocks[*] { keep residual }"
PROBED = "layers blocks[0] { compute }  layers blocks[1..] { keep residual }"
PARTS = "layers own = blocks[*].attn { keep output }"


@pytest.mark.parametrize(
    ("of", "layers", "whose"),
    [
        ("blocks[1].residual", ALL, ""), ("blocks[-1].attn.residual", ALL, ""), ("blocks[0].ffn.residual", PROBED, ""),
        ("blocks[50%].cross.residual", "layers model { keep output }", ""),
        ("blocks[0].attn.residual", PARTS, "own:"), ("blocks[1].residual", PARTS, "own:"),
        ("blocks[1].ffn.residual", "layers blocks[*].ffn { keep residual }", ""),
    ],
)  # fmt: skip
def test_what_a_block_has_added(
    of: str, layers: str, whose: str, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """In the steps that compute; those between reuse, and look at the last two that computed."""
    clock = Timeline("request", GRID, steps_in_order(GRID))
    text = Source("p.policy", TEXT.format(of=of, layers=layers, whose=whose))
    made = api.compile(small_wan, text, backend="eager", captured=captured_wan, clock=clock)
    for clock.row in range(STEPS):
        made(**call(clock.row))
    number = {"0": 0, "1": 1, "-1": 1, "50%": 1}[of[of.index("[") + 1 : of.index("]")]]
    part = next((name for name in ("attn", "cross", "ffn") if f".{name}." in of), "")
    entered, left = ENDS[part]
    known: list[torch.Tensor] = []
    wanted: list[Values] = []
    for step in range(STEPS):
        if step >= 3:
            wanted += values(known[-1], known[-2])
        if step < 3 or step % 2 == 0:
            seen: dict[str, torch.Tensor] = {}
            hooks = watch(small_wan.blocks[number], seen)
            small_wan(**call(step))
            for hook in hooks:
                hook.remove()
            known.append(seen[left] - seen[entered])
    assert {e.step for e in made.events if e.action == "reuse"} == {3, 5, 7}
    torch.testing.assert_close(
        torch.tensor(told(made.runner.decided)), torch.tensor(wanted), rtol=1e-4, atol=1e-5
    )  # fmt: skip


NEVER = """policy p {
  param threshold = 0.000001 in 0.0..1.0
  signal moved = rel_l1(kept(OF), kept(OF, 2))
  signal size  = magnitude(kept(OF))
  signal rough = frame_diff(kept(OF)) | mean(to = chunk)
  phase first for 2 steps { compute }
  phase cache { reuse chunk while moved + size + rough < threshold }
  layers blocks[*] { keep residual }
  chunks { finished: compute }
}
"""


@pytest.mark.parametrize(("part", "ar_step", "chunks"), [("", 0, 1), ("attn", 3, 4), ("ffn", 3, 4)])
def test_each_chunk_of_a_model_that_runs_on_rows(part: str, ar_step: int, chunks: int, tiny: Tiny) -> None:
    """Nothing is reused, so the run is the stock pipeline's, whose modules say what is looked at.

    Chunks at steps of their own look at what they gave at these.
    """
    entered, left = ENDS[part]
    known: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    own = tiny.pipe.transformer
    hooks = watch(own.blocks[1], seen)
    hooks.append(own.register_forward_hook(lambda *_: known.append(seen[left] - seen[entered])))
    tiny.run(ar_step=ar_step, guidance_scale=1.0)
    for hook in hooks:
        hook.remove()
    model = compiled(tiny, NEVER.replace("OF", f"blocks[1].{part}.residual".replace("..", ".")))
    tiny.run(ar_step=ar_step, guidance_scale=1.0)
    assert model.runner.engine.uses_rows
    assert {e.action for e in model.events} <= {"full", "skip"}
    given = {(e.chunk, e.step): known[e.row].chunk(chunks, 1)[e.chunk] for e in model.events if e.phase}
    asked = [(e.chunk, e.step) for e in model.events if e.phase == "cache"]
    wanted = [v for g, s in asked for v in values(given[g, s - 1], given[g, s - 2], 1, 8 // chunks)]
    assert len(wanted) == 8 * chunks
    torch.testing.assert_close(torch.tensor(told(model.runner.decided)), torch.tensor(wanted), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_looked_at_is_refused(small_wan: WanTransformer3DModel, captured_wan: api.Prepared) -> None:
    rule = "reuse chunk while magnitude(kept(blocks[{n}].residual)) < 1"

    def compile_with(rules: str, layers: str) -> None:
        text = f"policy p {{ phase first for 2 steps {{ compute }} phase late {{ {rules} }} {layers} }}"
        clock = Timeline("request", GRID, steps_in_order(GRID))
        api.compile(small_wan, Source("p.policy", text), backend="eager", captured=captured_wan, clock=clock)

    two = "layers front = blocks[0] { keep residual } layers rear = blocks[1] { keep residual }"
    compile_with(f"front: {rule.format(n=0)}  rear: compute every 2 steps", two)
    with pytest.raises(SourceNotFound, match="it is computed when `rear` is"):
        compile_with(f"front: {rule.format(n=1)}  rear: compute every 2 steps", two)
    with pytest.raises(SourceNotFound, match="a rule computes a part of a chunk's tokens"):
        compile_with(rule.format(n=0).replace("chunk", "token"), ALL)
    for n in (2, -3):
        with pytest.raises(LayersNotFound):
            compile_with(rule.format(n=n), ALL)


def test_the_output_of_earlier_steps_has_a_motion_too(
    small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    text = TEXT.format(of="output", layers=ALL, whose="")
    clock = Timeline("request", GRID, steps_in_order(GRID))
    made = api.compile(small_wan, Source("p.policy", text), backend="eager", captured=captured_wan, clock=clock)
    known: list[torch.Tensor] = []
    wanted: list[Values] = []
    for clock.row in range(STEPS):
        if clock.row >= 3:
            wanted += values(known[-1], known[-2])
        output = made(**call(clock.row))[0]
        if clock.row < 3 or clock.row % 2 == 0:
            known.append(by_token(output)[None])
    torch.testing.assert_close(torch.tensor(told(made.runner.decided)), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
