"""Results that are no numbers are told and never used again. A summary tells what a run was decided by."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import numpy as np
import pytest
import torch

from mccompile.runtime.finite import NOT_FINITE
from tests.pipelines.conftest import Wan, actions, generate


def broken(at: int, value: float) -> Callable[..., dict[str, object]]:
    """A callback that puts a value into the latents after one step, and takes it out again after the next."""
    clean: list[torch.Tensor] = []

    def after(pipe: object, index: int, timestep: object, kept: dict[str, torch.Tensor]) -> dict[str, object]:
        if index == at:
            clean.append(kept["latents"].clone())
            kept["latents"][0, 0, 0, 0, 0] = value
        elif index == at + 1:
            pipe.scheduler.model_outputs = [None] * len(pipe.scheduler.model_outputs)  # type: ignore[attr-defined]
            pipe.scheduler.lower_order_nums, pipe.scheduler.last_sample = 0, None  # type: ignore[attr-defined]
            kept["latents"] = clean[0]
        return dict(kept)

    return after


@pytest.mark.parametrize("value", [nan, inf])
def test_nothing_of_a_result_that_is_no_number_is_used_again(tiny_wan: Wan, value: float) -> None:
    """Latents that are no numbers at step 4: step 5 is computed, the trace says why, the run ends on numbers."""
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    before = generate(pipe)
    assert actions(compiled)[4:6] == "rr"
    compiled.clear()
    found = generate(pipe, callback_on_step_end=broken(3, value))
    assert torch.isfinite(found).all()
    events = [e for e in compiled.events if e.branch == "cond"]
    assert [(e.action, e.why) for e in events[4:6]] == [("reuse", "planned"), ("full", NOT_FINITE)]
    told = compiled.summary()
    assert told.odd == 2  # of both branches
    assert told.warnings[-1] == "the results of 2 calls were not finite; nothing of them was kept"
    assert torch.equal(generate(pipe), before)


def test_weights_that_are_no_numbers_leave_nothing_to_the_next_request(tiny_wan: Wan) -> None:
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe)
    before = generate(pipe)
    weight = tiny_wan.model.blocks[1].ffn.net[2].weight
    own = weight.clone()
    with torch.no_grad():
        weight.fill_(nan)
        assert not torch.isfinite(generate(pipe)).all()
        assert compiled.summary().odd > 2
        assert set(actions(compiled)[-7:]) == {"f"}
        weight.copy_(own)
    assert torch.equal(generate(pipe), before)
    assert compiled.summary().odd == 0


def test_a_summary_tells_ages_signals_and_guards(tiny_wan: Wan) -> None:
    policy = """policy guarded {
  signal drift = rel_l1(latent)
  phase warmup for 2 steps { compute }
  phase rest { reuse chunk while accumulate(drift) < 9  at most 2 in a row }
  layers blocks[*] { keep residual }
}
"""
    pipe = tiny_wan.pipe()
    compiled = tiny_wan.compile(pipe, policy)
    generate(pipe)
    assert actions(compiled) == "ffrrfrrf"
    told = compiled.summary()
    assert told.ages == {1: 4, 2: 4}  # of both branches
    assert told.guards == {"at most in a row": 4}
    assert told.signals["drift"].count == told.signals["account"].count == 12
    assert 0 < told.signals["drift"].low <= told.signals["drift"].middle <= told.signals["drift"].high
    assert "guard at most in a row: changed 4 decisions" in str(told)
    assert "reused at ages in steps: 4 of 1, 4 of 2" in str(told)
    assert np.isfinite([s.middle for s in told.signals.values()]).all()
