"""Sublayers of blocks decide apart: the same as the model's own modules, run by hand at the steps of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.runtime.conftest import Tiny
from tests.runtime.test_laws import compiled

APART = """policy apart {
  phase first for 2 steps { compute }
  phase late              { attn: compute every 2 steps
                            cross: compute every 3 steps
                            ffn: compute every 4 steps }
  layers attn  = blocks[*].attn { keep KEEP }
  layers cross = blocks[*].cross { keep KEEP }
  layers ffn   = blocks[*].ffn { keep KEEP }
  chunks { pending: compute  finished: compute }
}
"""
COMPUTED = {"attn": {0, 1, 2, 4, 6, 8}, "cross": {0, 1, 2, 5, 8}, "ffn": {0, 1, 2, 6}}  # of 10 steps
MODULES = {"attn": "attn1", "cross": "attn2", "ffn": "ffn"}


class Kept:
    """Stands in for a module of a block: its own result at some steps, and what it gave last at the others."""

    def __init__(self, own: Callable[..., torch.Tensor], computed: set[int]) -> None:
        self.own, self.computed = own, computed
        self.calls, self.kept = 0, dict[int, torch.Tensor]()

    def __call__(self, *given: object, **named: object) -> torch.Tensor:
        step, branch = divmod(self.calls, 2)  # a step calls the model once with and once without the prompt
        self.calls += 1
        if step in self.computed:
            self.kept[branch] = self.own(*given, **named)
        return self.kept[branch]


@contextmanager
def keeping_modules(blocks: nn.ModuleList, computed: dict[str, set[int]]) -> Iterator[None]:
    modules = [(block.get_submodule(MODULES[name]), steps) for block in blocks for name, steps in computed.items()]
    for module, steps in modules:
        module.forward = Kept(module.forward, steps)  # type: ignore[method-assign]
    yield
    for module, _ in modules:
        del module.forward


def test_the_output_of_each_sublayer_is_computed_at_its_own_steps(tiny: Tiny) -> None:
    with keeping_modules(tiny.pipe.transformer.blocks, COMPUTED):
        expected = tiny.run(ar_step=0)
    model = compiled(tiny, APART.replace("KEEP", "output"))
    torch.testing.assert_close(tiny.run(ar_step=0), expected, rtol=0, atol=0)
    for name, steps in COMPUTED.items():
        assert {e.step for e in model.events if e.region == name and e.action == "full"} == steps
