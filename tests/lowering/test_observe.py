"""Late signals: which rules read them, and what the graph behind a region makes of its output."""

from __future__ import annotations

import pytest
import torch

from mccompile.language.load import load_policy
from mccompile.lowering.expressions import frame_difference
from mccompile.lowering.observe import HOST, build_observe, late_signals, late_wanted
from mccompile.lowering.sources import Located, RegionOutput

OUTPUT = Located("block_output", RegionOutput(), "tokens", 1, (1, 1, 1))
TEXT = """policy p {
  param gain = 2 in 1..4
  signal drift  = rel_l1(modulation)
  signal motion = frame_diff(block_output)
  signal scaled = frame_diff(block_output) * gain
  signal weight = motion + scaled
  phase first for 1 step { compute }
  phase middle for 4 steps { reuse chunk while accumulate(drift) < 10% }
  phase late { reuse token while accumulate(weight) < 2 }
  layers blocks[*] { keep residual }
}
"""
POLICY = load_policy(TEXT)


def test_a_rule_reads_the_late_signals_that_its_own_ones_are_made_of() -> None:
    compute, early, late = (phase.rule for phase in POLICY.phases)
    assert late_signals(POLICY, compute) == late_signals(POLICY, early) == frozenset()
    assert late_signals(POLICY, late) == {"motion", "scaled"}  # the third one is made of them when it is asked for


MEANS = TEXT.replace("accumulate(weight)", "accumulate(average(weight * 2, over = 3))")


@pytest.mark.parametrize(("text", "wanted"), [(TEXT, (False, False, True)), (MEANS, (True, True, True))])
def test_steps_that_add_to_a_mean_of_a_late_signal_want_it_too(text: str, wanted: tuple[bool, ...]) -> None:
    assert late_wanted(load_policy(text)) == wanted


def test_without_late_signals_there_is_nothing_to_observe() -> None:
    early = load_policy(
        "policy p { phase a { reuse chunk while rel_l1(modulation) < 1 } layers blocks[*] { keep residual } }"
    )
    assert build_observe(early, OUTPUT) is None
    assert late_wanted(early) == (False,)


def test_the_graph_measures_the_chunks_that_want_it() -> None:
    """The others keep their signals and their last frame. A motion is against the last frame of the chunk before."""
    spec = build_observe(POLICY, OUTPUT)
    assert spec is not None
    assert spec.params == ("gain",)
    chunks, frames, places, channels = 3, 2, 4, 5
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(1, chunks * frames * places, channels, generator=generator)
    tail = torch.randn(1, chunks + 1, places, channels, generator=generator)
    old = {name: torch.full((1, chunks, frames, places), -1.0 - i) for i, name in enumerate(spec.signals)}
    rows = {"want": [1.0, 0.0, 1.0], "first": [1.0, 0.0, 0.0], "tail": [0.0, 1.0, 1.0]}
    host = torch.tensor([[rows[name] for name in HOST]])
    found = dict(
        zip(("tail", *spec.signals), spec.module(host, torch.tensor([3.0]), output, tail, *old.values()), strict=True)
    )

    h = output.view(1, chunks, frames, places, channels)
    want, first, has_tail = (torch.tensor(rows[name]).view(1, chunks, 1, 1) > 0 for name in HOST)
    last = torch.where(want, h[:, :, -1], tail[:, 1:])
    assert torch.equal(found["tail"], torch.cat([tail[:, :1], last], 1))
    before = torch.cat([tail[:, :1], last[:, :-1]], 1)
    motion = frame_difference(h, before, has_tail, first, True)
    for name, before_it in old.items():
        wanted = motion if name == "motion" else motion * 3.0
        torch.testing.assert_close(found[name], torch.where(want, wanted, before_it))


@pytest.mark.parametrize("one", [True, False])
def test_a_signal_of_coarser_cells_is_there_for_every_cell(one: bool) -> None:
    text = TEXT.replace("= frame_diff(block_output)", "= mean(frame_diff(block_output), to = chunk)")
    lines = [line for line in text.splitlines(keepends=True) if not (one and "scaled =" in line)]
    spec = build_observe(load_policy("".join(lines).replace("+ scaled", "* gain") if one else text), OUTPUT)
    assert spec is not None
    assert len(spec.signals) == (1 if one else 2)
    old = [torch.zeros(1, 1, 2, 3) for _ in spec.signals]
    output, tail = torch.arange(12.0).reshape(1, 6, 2), torch.zeros(1, 2, 3, 2)
    found = spec.module(torch.ones(1, 3, 1), torch.tensor([1.0]), output, tail, *old)
    assert all(value.shape == (1, 1, 2, 3) for value in found[1:])
