"""AdaCache: how many steps are reused follows from how fast one block changes, against the rule in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

import mccompile.api as api
from mccompile.diagnostics.source import Source
from tests.runtime.test_forecast import STEPS, call
from tests.runtime.test_outputs import Outputs, agree, ours

PACES = ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2), (float("inf"), 1))
"""Of its table for 30 steps: below each distance per step, how many steps later the next computation comes."""


class Added(nn.Module):
    """In the place of all blocks: what they added when they were last run."""

    def __init__(self, residual: torch.Tensor) -> None:
        super().__init__()
        self.residual = residual

    def forward(self, h: torch.Tensor, *more: object) -> torch.Tensor:
        return h + self.residual


def motion_of(residual: torch.Tensor) -> float:
    """The mean over tokens of how far each is from its place in the frame before; the first frame has the second's."""
    tokens = residual.reshape(3, 16, -1)
    moved = (tokens[1:] - tokens[:-1]).abs().mean(-1) / (tokens[:-1].abs().mean(-1) + 1e-8)
    return float(torch.cat([moved[:1], moved]).mean())


def computed_once(model: WanTransformer3DModel, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The model's output, what its blocks have added, and what attention of the middle one has."""
    seen: dict[str, torch.Tensor] = {}
    middle = model.blocks[1]
    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda _, given: seen.update(entered=given[0])),
        model.blocks[-1].register_forward_hook(lambda _, given, out: seen.update(left=out)),
        middle.register_forward_pre_hook(lambda _, given: seen.update(before=given[0])),
        middle.norm2.register_forward_pre_hook(lambda _, given: seen.update(after=given[0])),
    ]
    output = model(**call(step))[0]
    for hook in hooks:
        hook.remove()
    return output, seen["left"] - seen["entered"], seen["after"] - seen["before"]


def adacache(model: WanTransformer3DModel, gradient: float, scale: float) -> tuple[Outputs, set[int]]:
    """At each computation, how many steps are reused: by the distance of the last two residuals of attention in the
    middle block, per step, weighted by their motion between a tenth and nine tenths of the run.

    Returns the numbers of steps that were asked for, too.
    """
    made, computed, paces = list[torch.Tensor](), list[bool](), set[int]()
    known: list[tuple[int, torch.Tensor]] = []  # step and residual of each computation
    residual, until = torch.zeros(0), 0
    for step in range(STEPS):
        if step < until and step < STEPS - 1:
            own, model.blocks = model.blocks, nn.ModuleList([Added(residual)])
            made.append(model(**call(step))[0])
            model.blocks = own
            computed.append(False)
            continue
        output, residual, attention = computed_once(model, step)
        made.append(output)
        known.append((step, attention))
        computed.append(True)
        if step >= 1:
            (earlier, old), (at, new) = known[-2:]
            hurry = scale * float((new - old).abs().mean() / old.abs().mean()) / (at - earlier)
            if 0.1 <= step / STEPS < 0.9:
                motion, then = motion_of(new), motion_of(old)
                hurry *= motion + gradient * abs(motion - then) / (at - earlier)
            pace = next(pace for limit, pace in PACES if hurry < limit)
            paces.add(pace)
            until = step + pace
    return (made, computed), paces


@pytest.mark.parametrize(("gradient", "scale"), [(0.0, 1.0), (10.0, 1.0), (0.0, 1.3), (10.0, 0.3)])
def test_adacache(
    gradient: float, scale: float, small_wan: WanTransformer3DModel, captured_wan: api.Prepared
) -> None:
    """scale: the distances of a random model are drawn out, so that several rows of the table are met."""
    of = "blocks[50%].attn.residual"
    moved = f"rel_l1(kept({of}), kept({of}, 2))"
    text = f"policy scaled extends adacache {{ signal speed = {scale} * {moved} / apart }}"
    found, made = ours(small_wan, captured_wan, Source("p.policy", text), gradient=gradient)
    with torch.no_grad():
        wanted, paces = adacache(small_wan, gradient, scale)
    agree(found, made, wanted)
    assert not all(wanted[1])
    assert len(paces) > 1 or scale < 1
