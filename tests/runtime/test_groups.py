"""Regions with names decide apart: each as the only one of a policy would, together as the model's own blocks do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mccompile.runtime.trace import by_cell
from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import compiled

HALVES = """policy halves {
  phase first for 2 steps { compute }
  phase late              { front: compute every 2 steps
                            rear: compute every 3 steps }
  layers front = blocks[0..0] { keep residual }
  layers rear  = blocks[1..2] { keep KEEP }
  chunks { pending: compute  finished: compute }
}
"""
COMPUTED = {"front": {0, 1, 2, 4, 6, 8}, "rear": {0, 1, 2, 5, 8}}  # of 10 steps


class Schedule:
    """Runs the blocks of a model by hand: those of a region together, or what was kept of them in their place."""

    def __init__(self, blocks: Sequence[nn.Module], computed: set[int], residual: bool) -> None:
        self.computed, self.residual = computed, residual
        self.calls, self.kept, self.entered = 0, dict[int, torch.Tensor](), torch.empty(0)
        self.first, self.last = blocks[0], blocks[-1]

    def forward(self, block: nn.Module, hidden: torch.Tensor, *more: object) -> torch.Tensor:
        step, branch = divmod(self.calls, 2)  # a step calls the model once with and once without the prompt
        if block is self.first:
            self.entered = hidden
        out = type(block).forward(block, hidden, *more) if step in self.computed else hidden
        if block is self.last:
            self.calls += 1
            if step in self.computed:
                self.kept[branch] = out - self.entered if self.residual else out
            else:
                out = self.entered + self.kept[branch] if self.residual else self.kept[branch]
        return out


@contextmanager
def scheduled(schedules: dict[str, tuple[Sequence[nn.Module], Schedule]]) -> Iterator[None]:
    for blocks, schedule in schedules.values():
        for block in blocks:
            block.forward = lambda *given, _own=(block, schedule): _own[1].forward(_own[0], *given)  # type: ignore[method-assign]
    yield
    for blocks, _ in schedules.values():
        for block in blocks:
            del block.forward


@pytest.mark.parametrize("keep", ["residual", "output"])
def test_each_region_runs_at_its_own_steps(tiny: Tiny, keep: str) -> None:
    blocks = [*tiny.pipe.transformer.blocks]
    of = {"front": blocks[:1], "rear": blocks[1:]}
    kinds = {"front": True, "rear": keep == "residual"}
    with scheduled({name: (of[name], Schedule(of[name], COMPUTED[name], kinds[name])) for name in of}):
        expected = tiny.run(ar_step=0)
    model = compiled(tiny, HALVES.replace("KEEP", keep))
    torch.testing.assert_close(tiny.run(ar_step=0), expected, rtol=0, atol=2e-5)
    (request,) = model.runner.requests.values()
    assert set(request.plans) == {f"{branch} {name}" for branch in ("cond", "uncond") for name in COMPUTED}
    for name, steps in COMPUTED.items():
        assert {e.step for e in model.events if e.region == name and e.action == "full"} == steps
    whole = by_cell(model.events)
    assert len(whole) == len(model.events) // 2
    assert {e.step for e in whole if e.action == "full"} == COMPUTED["front"] & COMPUTED["rear"]
    assert {e.step for e in whole if e.action == "reuse"} == {3, 7, 9}


RULES = {
    "chunk": "reuse chunk while rel_l1(latent, kept(latent)) < 0.4 at most 2 in a row",
    "token": "reuse token while accumulate(rel_l1(latent, over = token)) < 0.5 vote 30% of frames",
    "late": "reuse token while accumulate(rel_l1(modulation) * motion) < 0.5",
    "top": "compute top 40% of tokens by rel_l1(latent, over = token) compute all every 4 steps",
}
TWO = """policy two {
  SIGNAL
  phase first for 2 steps { compute }
  phase late              { LATE }
  layers FRONT blocks[0..0] { keep residual }
  REAR
  chunks { pending: skip  finished: refresh }
}
"""
REAR = "layers REAR blocks[1..2] { keep residual }"


def policy(rule: str, front: str = "", rear: str | None = "") -> str:
    """Regions without names, or with names and the rule for each of them. rear None: it is not kept."""
    named = "".join(f"{name}: {RULES[rule]}\n" for name in (front, rear) if name)
    words = {
        "SIGNAL": "signal motion = frame_diff(block_output) | min_max(floor = 20%)" if rule == "late" else "",
        "LATE": named or RULES[rule],
        "FRONT": front and f"{front} =",
        "REAR": "" if rear is None else REAR.replace("REAR", rear and f"{rear} ="),
    }
    text = TWO
    for word, meant in words.items():
        text = text.replace(word, meant)
    return text


def run(tiny: Tiny, text: str) -> tuple[torch.Tensor, list[tuple[object, ...]]]:
    model = compiled(tiny, text)
    video, events = tiny.run(num_inference_steps=7), by_cell(model.events)
    tiny.pipe.transformer = model.undo()
    return video, [(e.row, e.branch, e.chunk, e.action, e.computed / e.tokens) for e in events]


@pytest.mark.parametrize("rule", RULES)
def test_regions_that_decide_apart_by_one_rule_decide_as_those_that_decide_together(tiny: Tiny, rule: str) -> None:
    one, together = run(tiny, policy(rule))
    two, apart = run(tiny, policy(rule, "front", "rear"))
    assert torch.equal(one, two)
    assert together == apart
    assert {e[3] for e in apart} >= {"full", "reuse" if rule == "chunk" else "partial"}


def test_a_name_alone_changes_nothing(tiny: Tiny) -> None:
    one, together = run(tiny, policy("token", rear=None))
    two, apart = run(tiny, policy("token", "front", rear=None))
    assert torch.equal(one, two)
    assert together == apart
