"""Two transformers that take turns (Wan 2.2): each runs its own part of the steps under the policy."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from mccompile import api
from mccompile.cli.words import by_place
from mccompile.diagnostics.failure import PolicyError
from mccompile.generate import memory
from mccompile.generate.compare import last_call
from mccompile.generate.doctor import parts_of
from mccompile.generate.flops import count, count_by_row, prices_of
from mccompile.language.load import load_policy
from mccompile.pipelines.errors import SecondTransformer
from mccompile.pipelines.finding import clock_for
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.errors import UnknownStep
from mccompile.studio.report.record import Way
from mccompile.studio.report.recorded import record_of, watch
from tests.pipelines import conftest
from tests.pipelines.conftest import Wan, distance, steps, wan, wan_transformer

RATIO = 0.875
SECOND = 3  # of 8 steps with a shift of 3: the first row below 875
generate = partial(conftest.generate, num_frames=5)


@dataclass(frozen=True)
class Experts:
    """Two experts that differ in their weights, captured once."""

    first: WanTransformer3DModel
    second: WanTransformer3DModel
    captured: api.Prepared

    def pipe(self, **more: object) -> WanPipeline:
        wan = Wan(self.first, self.captured)
        return wan.pipe(**{"transformer_2": self.second, "boundary_ratio": RATIO, **more})

    def compile(self, pipe: WanPipeline, policy: object = "fixed_interval", **more: object) -> CompiledModel:
        return api.compile(pipe, policy, backend="eager", captured=self.captured, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def experts(captured_wan: Wan) -> Experts:
    second = copy.deepcopy(captured_wan.model)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    found = Experts(captured_wan.model, second, captured_wan.captured)
    return replace(found, captured=api.complete(found.pipe(), captured_wan.captured))


def done(compiled: CompiledModel) -> str:
    return "".join(event.action[0] for event in compiled.events if event.branch == "cond")


def test_each_expert_has_its_own_part_of_the_steps_and_its_own_warm_up(experts: Experts) -> None:
    pipe = experts.pipe()
    stock = generate(pipe)
    compiled = experts.compile(pipe, warmup=1, interval=3)
    got = generate(pipe)
    assert steps(compiled) == steps(compiled, "uncond") == list(range(8))
    assert done(compiled) == "ffr" + "ffrrf"
    assert [e.why for e in compiled.events if e.step == SECOND] == 2 * ["nothing kept yet"]
    assert 0 < distance(got, stock) < 0.5
    told = compiled.summary()
    assert (told.steps, told.complete, told.computed) == (8, True, 5 / 8)
    assert {n: (e.first, e.last, e.computed) for n, e in told.experts.items()} == {
        "transformer": (0, 2, 2 / 3), "transformer_2": (3, 7, 3 / 5),
    }  # fmt: skip
    assert "transformer_2: steps 3 to 7, 60.0%" in str(told).splitlines()
    assert not compiled.runner.requests, "the first expert's part is over"


def test_the_exact_policy_gives_what_the_experts_give(experts: Experts) -> None:
    pipe = experts.pipe()
    stock = generate(pipe)
    compiled = experts.compile(pipe, "compute")
    assert distance(generate(pipe), stock) < 1e-5
    assert compiled.experts[1].model is experts.second


@pytest.mark.parametrize("policy", ["fixed_interval", "teacache", "magcache"])
def test_folded_and_unfolded_agree(experts: Experts, policy: str) -> None:
    found = []
    for fold in (True, False):
        pipe = experts.pipe()
        compiled = experts.compile(pipe, policy, fold=fold)
        found.append((generate(pipe), done(compiled)))
        compiled.undo()
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][0], found[1][0])


def test_each_expert_may_have_its_own_policy(experts: Experts) -> None:
    pipe = experts.pipe()
    policies = {"transformer": "compute", "transformer_2": "fixed_interval"}
    compiled = experts.compile(pipe, policies, warmup=1, interval=3)
    generate(pipe)
    assert done(compiled) == "fff" + "ffrrf"
    compiled.set_parameters(interval=2)
    compiled.events.clear()
    generate(pipe)
    assert done(compiled) == "fff" + "ffrfr"
    assert compiled.summary().policy == "compute and fixed_interval"
    with pytest.raises(PolicyError, match="MC0301"):
        compiled.set_parameters(intervall=2)
    with pytest.raises(ValueError, match="policies are given for transformer, and the transformers are"):
        experts.compile(pipe, {"transformer": "compute"})


def test_undo_gives_both_back_and_a_saved_pipeline_has_both(experts: Experts, tmp_path: Path) -> None:
    pipe = experts.pipe()
    compiled = experts.compile(pipe)
    assert isinstance(pipe.transformer_2, CompiledModel)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["transformer_2"][1] == "WanTransformer3DModel"
    saved = WanTransformer3DModel.from_pretrained(tmp_path / "transformer_2").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in experts.second.state_dict().items())
    again = experts.compile(pipe, "compute")
    compiled.undo()
    assert pipe.transformer_2 is again.experts[1]
    again.experts[1].undo()
    assert (pipe.transformer, pipe.transformer_2) == (experts.first, experts.second)


def test_clear_frees_what_both_keep(experts: Experts) -> None:
    pipe = experts.pipe()
    compiled = experts.compile(pipe)
    generate(pipe)
    compiled.clear()
    assert compiled.events == []
    assert not any(each.runner.requests for each in compiled.experts)


@pytest.mark.parametrize("ratio", [0.0, 1.1])
def test_one_expert_may_run_all_steps(experts: Experts, ratio: float) -> None:
    pipe = experts.pipe(boundary_ratio=ratio)
    compiled = experts.compile(pipe, warmup=2, interval=3)
    generate(pipe)
    assert done(compiled) == "fffrrfrr"
    assert list(compiled.summary().experts) == ["transformer" if ratio == 0 else "transformer_2"]


def test_weights_of_the_second_expert_are_followed(experts: Experts) -> None:
    pipe = experts.pipe()
    compiled = experts.compile(pipe, "compute")
    own = experts.second.proj_out.weight.data
    before = generate(pipe)
    experts.second.proj_out.weight.data = own * 1.5
    got = generate(pipe)
    compiled.undo()
    stock = generate(pipe)
    experts.second.proj_out.weight.data = own
    assert distance(got, stock) < 1e-5
    assert distance(before, stock) > 0.01


def test_without_a_boundary_the_first_runs_all_steps(experts: Experts) -> None:
    pipe = experts.pipe(boundary_ratio=None)
    compiled = experts.compile(pipe)
    assert len(compiled.experts) == 1
    generate(pipe)
    assert steps(compiled) == list(range(8))
    assert pipe.transformer_2 is experts.second


def test_a_transformer_in_another_place_is_refused(experts: Experts) -> None:
    pipe = experts.pipe()
    pipe.unconditional_transformer = wan_transformer(layers=1)
    with pytest.raises(SecondTransformer, match="runs `unconditional_transformer` beside"):
        experts.compile(pipe)
    assert pipe.transformer is experts.first


def test_what_was_compiled_for_one_is_not_installed_beside_a_plain_second(experts: Experts) -> None:
    alone, both = Wan(experts.first, experts.captured).pipe(), experts.pipe()
    compiled = experts.compile(alone)
    with pytest.raises(SecondTransformer, match="`transformer_2` beside"):
        compiled.install(both, clock_for(both))
    assert both.transformer is experts.first


def test_timesteps_that_cross_the_boundary_twice_are_refused(experts: Experts) -> None:
    pipe = experts.pipe()
    compiled = experts.compile(pipe)
    plain: Callable[..., None] = pipe.scheduler.set_timesteps

    def odd(*args: object, **kwargs: object) -> None:
        plain(*args, **kwargs)
        pipe.scheduler.timesteps[-1] = 900

    pipe.scheduler.set_timesteps = odd
    with pytest.raises(UnknownStep, match="more than once"):
        generate(pipe)
    assert compiled.events == []


def test_a_second_expert_of_another_build_is_captured_itself(captured_wan: Wan) -> None:
    second = copy.deepcopy(captured_wan.model)
    second.blocks = second.blocks[:1]
    pipe = captured_wan.pipe(transformer_2=second, boundary_ratio=RATIO)
    prepared = api.complete(pipe, captured_wan.captured)
    assert len(prepared.others["transformer_2"].model.blocks) == 1


@pytest.fixture(scope="module")
def unlike(captured_wan: Wan) -> Experts:
    """The second expert has one block, and the first one two."""
    second = copy.deepcopy(captured_wan.model)
    second.blocks = second.blocks[:1]
    found = Experts(captured_wan.model, second, captured_wan.captured)
    return replace(found, captured=api.complete(found.pipe(), captured_wan.captured))


def test_each_expert_has_its_own_prices(unlike: Experts) -> None:
    """What the second one did costs what it costs a pipeline whose only transformer it is."""
    pipe = unlike.pipe()
    compiled = unlike.compile(pipe, warmup=1, interval=3)
    with last_call(compiled) as call:
        generate(pipe)
    prices = prices_of(compiled, call)
    assert {e.expert for e in compiled.events} == {"transformer", "transformer_2"}
    assert (len(prices.blocks), len(prices.others["transformer_2"].blocks)) == (2, 1)
    own = [e for e in compiled.events if e.expert == "transformer_2"]
    alone = Wan(unlike.second, unlike.captured.of("transformer_2")).compile(wan(model=unlike.second))
    wanted = count(alone, [replace(e, expert="") for e in own], prices_of(alone, call))
    assert count(compiled, own, prices) == pytest.approx(wanted, rel=1e-9)
    by_row = count_by_row(compiled, compiled.events, prices)
    assert len(by_row) == 8
    assert sum(by_row) == pytest.approx(count(compiled, compiled.events, prices), rel=1e-9)


def test_a_record_has_the_calls_and_the_plans_of_both(unlike: Experts) -> None:
    pipe = unlike.pipe()
    policies = {"transformer": "compute", "transformer_2": "teacache"}
    compiled = unlike.compile(pipe, policies, warmup=1)
    watch(compiled, thumbnails=False)
    seen = compiled.runner.watch
    assert seen is not None
    with seen.during(pipe):
        generate(pipe)
    way = Way("both", "both", 1.0, 1.0, None, (0.1,) * 8)
    story = record_of(compiled, (way,), (np.zeros((1, 8, 8, 3), np.uint8),), {}, 8).story
    assert [call.row for call in story.calls] == [row for row in range(8) for _ in range(2)]
    assert [step.action for step in story.plan[:4]] == ["compute"] * 4
    assert len(story.plan) == 8
    (threshold,) = story.thresholds
    assert [value is None for value in threshold.values] == [True] * SECOND + [False] * (8 - SECOND)


def test_what_is_told_before_a_run_is_told_of_both(unlike: Experts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(unlike.captured)
    assert [len(own.model.blocks) for own in parts.values()] == [2, 1]
    monkeypatch.setattr(api, "prepare", lambda pipe: unlike.captured)
    monkeypatch.setattr(memory, "kept_by", lambda pipe, policy, made, *_: len(made.model.blocks))
    found = memory.predict_kept(unlike.pipe(), load_policy("compute"), None, {})
    assert found == {"transformer": 2, "transformer_2": 1}
    assert by_place({"one": "a\n", "two": "b\n", "three": "a\n"}) == "# one, three\na\n# two\nb\n"
    assert by_place({"one": "a\n", "two": "a\n"}) == "a\n"
