"""The laws of the runtime, on a stock diffusers pipeline whose transformer was replaced."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import fx

import mccompile.api as api
from mccompile.diagnostics.source import Source
from mccompile.runtime.errors import ConfigChanged, NoClock
from mccompile.runtime.trace import share_computed
from tests.runtime.conftest import Tiny, embeds

MOTION = """policy motion {
  param threshold = 0.5 in 0.01..5
  param warmup = 2 steps in 1..10
  param updates = 1 in 0..50
  signal drift  = rel_l1(modulation)
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for warmup steps        { compute }
  phase coarse until updates refreshes { reuse chunk while accumulate(drift) < threshold }
  phase fine                           { reuse token while accumulate(drift * motion) < threshold }
  layers blocks[*] { keep residual }
  chunks { pending: skip  finished: keep }
}
"""


def compiled(tiny: Tiny, policy: str, **more: object):
    text = Source("test.policy", policy) if policy.startswith("policy") else policy
    more = {"backend": "eager", **more}
    return api.compile(tiny.pipe, text, call=tiny.call, captured=tiny.captured, **more)


def test_computing_everything_is_bit_equal_to_the_stock_pipeline(tiny: Tiny) -> None:
    stock = tiny.run()
    model = compiled(tiny, "compute")
    assert torch.equal(tiny.run(), stock)
    assert share_computed(model.events) == 1.0


def test_exact_skips_work_and_changes_nothing(tiny: Tiny) -> None:
    stock = tiny.run()
    model = compiled(tiny, "exact")
    torch.testing.assert_close(tiny.run(), stock, rtol=0, atol=2e-5)
    assert share_computed(model.events) < 0.75


@pytest.mark.parametrize("noise", [0, 20])
def test_long_videos_in_windows_stay_exact(tiny: Tiny, noise: int) -> None:
    """Frames of the window before are given to the next, clean or with noise drawn anew at each call."""
    call = {"num_frames": 45, "base_num_frames": 29, "overlap_history": 5, "addnoise_condition": noise}
    call |= {"num_inference_steps": 4, "ar_step": 2}
    torch.manual_seed(0)  # the pipeline draws the noise of the condition from the global generator
    stock = tiny.run(**call)
    model = compiled(tiny, "exact")
    torch.manual_seed(0)
    torch.testing.assert_close(tiny.run(**call), stock, rtol=0, atol=5e-5)
    assert share_computed(model.events) < 1.0
    assert len({e.request for e in model.events}) == 2  # each window is a request with a store of its own


def test_tokens_are_selected_and_the_rest_reused(tiny: Tiny) -> None:
    stock = tiny.run()
    model = compiled(tiny, MOTION)
    out = tiny.run()
    kinds = {e.action for e in model.events}
    assert kinds == {"skip", "reuse", "partial", "full"}  # every branch of the dispatch ran
    assert not torch.equal(out, stock)
    assert torch.isfinite(out).all()


def test_reusing_never_is_exact(tiny: Tiny) -> None:
    """A threshold that always fires computes every token of every active chunk: the exact run, token by token."""
    stock = tiny.run()
    compiled(tiny, MOTION.replace("finished: keep", "finished: refresh"), threshold=0.01)
    torch.testing.assert_close(tiny.run(), stock, rtol=0, atol=2e-5)


def test_one_seed_gives_one_trace_and_one_video(tiny: Tiny) -> None:
    model = compiled(tiny, MOTION)
    first, events = tiny.run(), list(model.events)
    model.events.clear()
    assert torch.equal(tiny.run(), first)
    assert [dataclasses.replace(e, request="") for e in model.events] == [
        dataclasses.replace(e, request="") for e in events
    ]


@pytest.mark.parametrize("policy", [MOTION, "teacache", "flowcache", "motioncache"])
def test_folding_changes_no_decision(tiny: Tiny, policy: str) -> None:
    results = []
    for fold in (True, False):
        model = compiled(tiny, policy, fold=fold)
        out = tiny.run()
        results.append((out, [(e.row, e.branch, e.chunk, e.action, e.computed) for e in model.events]))
        model.undo()
    assert results[0][1] == results[1][1]
    assert torch.equal(results[0][0], results[1][0])


def test_parameters_are_free(tiny: Tiny) -> None:
    """Another threshold changes the decisions, and builds and compiles nothing."""
    built: list[str] = []

    def counting(module: fx.GraphModule, role: str):
        built.append(role)
        return module.forward

    model = compiled(tiny, MOTION, backend=counting)
    tiny.run()
    share, count = share_computed(model.events), len(built)
    model.set_parameters(threshold=1.0)
    model.events.clear()
    tiny.run()
    assert share_computed(model.events) < share
    assert len(built) == count


def test_branches_share_nothing(tiny: Tiny) -> None:
    """Before each call of a branch, everything that the other branch keeps is NaN; the video stays the same."""
    model = compiled(tiny, MOTION)
    clean = tiny.run()
    runner = model.runner
    own_call, kept = runner.call, {}

    def poisoned(inputs, moment):
        branches = runner.requests[moment.request].branches if moment.request in runner.requests else {}
        for name, store in branches.items():
            if name != moment.branch:
                buffers = [b for x in store.memory.buffers.values() for b in x]
                tensors = [*store.memory.kept.values(), *store.course.states.tensors.values(), *buffers]
                kept[name] = [(t, t.clone()) for t in tensors]
                for t in tensors:
                    t.fill_(float("nan"))
        result = own_call(inputs, moment)
        for saved in kept.values():
            for t, value in saved:
                t.copy_(value)
        kept.clear()
        return result

    runner.call = poisoned
    assert torch.equal(tiny.run(), clean)


def test_samples_of_a_batch_decide_alone(tiny: Tiny) -> None:
    """A batch of two gives each sample the decisions, and the video, of its own run."""
    runs = []
    for samples in ([0], [1], [0, 1]):
        text = torch.cat([embeds(seed=s)["prompt_embeds"] for s in samples])  # type: ignore[misc]
        call = {"prompt": None, "prompt_embeds": text, "negative_prompt_embeds": -text}
        of_these = dataclasses.replace(tiny, call=call)
        model = compiled(of_these, MOTION)
        out = of_these.run(generator=[torch.Generator().manual_seed(s) for s in samples])
        runs.append((out, model.events))
        model.undo()
    single, both = [runs[0], runs[1]], runs[2]
    for sample, (out, events) in enumerate(single):
        torch.testing.assert_close(both[0][sample : sample + 1], out, rtol=0, atol=2e-5)
        mine = [(e.row, e.branch, e.chunk, e.computed) for e in both[1] if e.sample == sample]
        assert mine == [(e.row, e.branch, e.chunk, e.computed) for e in events]
    assert runs[0][1] != runs[1][1]


def test_undo_gives_the_stock_pipeline_back(tiny: Tiny) -> None:
    stock, own = tiny.run(), tiny.pipe.transformer
    model = compiled(tiny, MOTION)
    assert tiny.pipe.transformer is model
    assert model.undo() is own
    assert tiny.pipe.transformer is own
    assert "generate_timestep_matrix" not in vars(tiny.pipe)
    assert torch.equal(tiny.run(), stock)


def test_a_transformer_given_back_by_hand_is_compiled_again(tiny: Tiny) -> None:
    own = tiny.pipe.transformer
    first = compiled(tiny, "exact")
    tiny.pipe.transformer = own
    model = compiled(tiny, "compute")
    out = tiny.run(num_inference_steps=3, ar_step=1)
    assert (len(first.events), share_computed(model.events)) == (0, 1.0)
    first.undo()
    assert torch.equal(tiny.run(num_inference_steps=3, ar_step=1), out)


def test_a_call_without_a_clock_is_refused(tiny: Tiny) -> None:
    model = compiled(tiny, "exact")
    call = {"hidden_states": torch.zeros(1, 4, 8, 6, 8), "timestep": torch.zeros(1, 8, dtype=torch.long)}
    call |= {"encoder_hidden_states": torch.zeros(1, 7, 16), "enable_diffusion_forcing": True, "fps": [1]}
    with pytest.raises(NoClock):
        model(**call, return_dict=False)


def test_another_block_length_than_compiled_is_refused(tiny: Tiny) -> None:
    compiled(tiny, "exact")
    with pytest.raises(ConfigChanged, match="num_frame_per_block: 2 -> 4"):
        tiny.run(causal_block_size=4)
