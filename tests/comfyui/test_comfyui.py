"""The node in ComfyUI's order of calls: what it computes, which step and branch each call is, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mccompile.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from mccompile.comfyui.errors import NodeRefused
from mccompile.comfyui.node import PolicyNode
from mccompile.comfyui.session import NodeSession
from mccompile.diagnostics.failure import PolicyError
from mccompile.runtime.trace import share_computed
from tests.comfyui.interface import (
    MODEL,
    OUTER,
    BaseModel,
    ModelPatcher,
    VideoModel,
    flow_sigmas,
    patcher_extension,
    sample,
)

STEPS = 6
EVERY_SECOND = """policy second {
  phase cycle { compute every 2 steps }
  layers blocks[*] { keep residual }
}
"""


@pytest.fixture(autouse=True, scope="module")
def comfy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy.patcher_extension", patcher_extension())
        yield


@pytest.fixture(scope="module")
def loaded() -> ModelPatcher:
    torch.manual_seed(0)
    return ModelPatcher(BaseModel(VideoModel().eval().requires_grad_(False)))


@pytest.fixture(scope="module")
def node(loaded: ModelPatcher, tmp_path_factory: pytest.TempPathFactory) -> ModelPatcher:
    path = tmp_path_factory.mktemp("policies") / "second.policy"
    path.write_text(EVERY_SECOND)
    return under(loaded, str(path))


@pytest.fixture
def second(node: ModelPatcher) -> ModelPatcher:
    """A node that computes every second step; its model is captured once, as in ComfyUI."""
    return node.clone()


def under(loaded: ModelPatcher, policy: str, parameters: str = "") -> ModelPatcher:
    (made,) = PolicyNode().apply(loaded, policy, parameters, "eager")
    return made


def session_of(patcher: ModelPatcher) -> NodeSession:
    (wrapper,) = patcher.wrappers[OUTER]["mccompile"]
    return wrapper.__self__


def run(patcher: ModelPatcher, **more: object) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(int(more.pop("batch", 1)), 4, 3, 8, 12, generator=noise)
    prompts = {name: torch.randn(1, 5, 16, generator=noise) for name in ("cond", "uncond")}
    return sample(patcher, latents, flow_sigmas(STEPS), prompts, **more)


class Heard:
    """The events of a sampling, taken before the node frees them."""

    def __init__(self, patcher: ModelPatcher) -> None:
        self.events, self._session = [], session_of(patcher)
        patcher.add_wrapper_with_key(OUTER, "heard", self._inside)

    def _inside(self, executor: Callable, *args: object) -> object:
        result = executor(*args)
        assert self._session.compiled is not None
        self.events = list(self._session.compiled.events)
        return result


@pytest.mark.parametrize("together", [True, False])
def test_computing_everything_is_the_model(loaded: ModelPatcher, together: bool) -> None:
    made = under(loaded, "compute")
    heard = Heard(made)
    torch.testing.assert_close(run(made, together=together), run(loaded), rtol=0, atol=2e-5)
    assert share_computed(heard.events) == 1.0
    assert {(e.row, e.branch) for e in heard.events} == {(r, b) for r in range(STEPS) for b in ("cond", "uncond")}


@pytest.mark.parametrize("together", [True, False])
def test_a_policy_reuses_and_repeats(loaded: ModelPatcher, second: ModelPatcher, together: bool) -> None:
    """The definition, by hand: the residual of the blocks of each branch's last computed step is added again."""
    made = second
    heard = Heard(made)
    out = run(made, together=together)
    assert [e.action for e in heard.events if e.branch == "uncond"] == ["full", "reuse"] * 3
    torch.testing.assert_close(out, run(by_hand(loaded), together=False), rtol=0, atol=2e-5)
    assert torch.equal(run(made, together=together), out)
    assert not torch.equal(out, run(loaded))


def by_hand(loaded: ModelPatcher) -> ModelPatcher:
    made = loaded.clone()
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def call(executor: Callable, x, timestep, context, clip_fea, options, **kwargs):  # type: ignore[no-untyped-def]
        model = executor.class_obj
        (branch,) = options["cond_or_uncond"]
        step = kept[branch][0] + 1 if branch in kept else 0
        entered: list[torch.Tensor] = []
        handles = [model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))]
        if step % 2:
            residual = kept[branch][1]
            handles.append(model.blocks[-1].register_forward_hook(lambda *_: entered[0] + residual))
        else:
            handles.append(
                model.blocks[-1].register_forward_hook(lambda _, __, out: entered.append(out - entered[0]))
            )
        try:
            return executor(x, timestep, context, clip_fea, options, **kwargs)
        finally:
            kept[branch] = step, kept[branch][1] if step % 2 else entered[1]
            for handle in handles:
                handle.remove()

    made.add_wrapper_with_key(MODEL, "by hand", call)
    return made


def test_tokens_are_selected(loaded: ModelPatcher) -> None:
    made = under(loaded, "top_motion", "warmup=2")
    heard = Heard(made)
    out = run(made)
    compiled = session_of(made).compiled
    assert compiled is not None
    assert compiled.refusals == ()
    assert {e.action for e in heard.events} == {"full", "partial"}
    assert torch.isfinite(out).all()


def test_several_videos_decide_apart(loaded: ModelPatcher, second: ModelPatcher) -> None:
    made = second.clone()
    both = run(made, batch=2)
    assert both.size(0) == 2
    assert torch.isfinite(both).all()
    assert not torch.equal(both[0], both[1])


def test_a_run_that_was_broken_off_leaves_nothing(loaded: ModelPatcher, second: ModelPatcher) -> None:
    made = second.clone()
    first = run(made)

    def broken(pairs: Iterator) -> Iterator:
        yield next(pairs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, steps_of=broken)
    assert torch.equal(run(made), first)


def test_guidance_that_goes_off_and_on_computes_again(loaded: ModelPatcher, second: ModelPatcher) -> None:
    """A branch that missed a step has nothing that may be reused."""
    made = second.clone()
    heard = Heard(made)
    third, *_ = sigmas = flow_sigmas(STEPS)[2:].tolist()
    assert len(sigmas) > 2
    run(made, guided=lambda sigma: sigma != third)
    actions = {branch: [e.action for e in heard.events if e.branch == branch] for branch in ("cond", "uncond")}
    assert actions["cond"] == ["full", "reuse", "full", "reuse", "full", "reuse"]
    assert actions["uncond"] == ["full", "reuse", "full", "full", "reuse"]  # not at step 2, and fresh at step 3


def test_outside_of_a_sampling_the_model_runs(loaded: ModelPatcher, second: ModelPatcher) -> None:
    made = second.clone()
    x, sigma, text = torch.randn(1, 4, 3, 8, 12), torch.tensor([0.5]), torch.randn(1, 5, 16)
    with torch.no_grad():
        plain = loaded.model.apply_model(x, sigma, text)
        options = {"wrappers": made.wrappers, "cond_or_uncond": [0]}
        assert torch.equal(loaded.model.apply_model(x, sigma, text, None, options), plain)


def test_a_sampler_with_two_calls_a_step_is_refused(loaded: ModelPatcher, second: ModelPatcher) -> None:
    def heun(pairs: Iterator) -> Iterator:
        for now, after in pairs:
            yield now, after
            yield now, after

    with pytest.raises(NodeRefused, match="neither that step nor the next one"):
        run(second, steps_of=heun)


def test_other_nodes_that_change_blocks_are_refused(loaded: ModelPatcher, second: ModelPatcher) -> None:
    for name, value in (("patches", {"double_block": [print]}), ("rope_options", {"scale_t": 2.0})):
        made = second.clone()
        made.options = {name: value}
        with pytest.raises(NodeRefused, match=f"`{name}`"):
            run(made)
    made = second.clone()
    made.options = {"patches": {}, "callbacks": {"on_load": [print]}}
    assert torch.isfinite(run(made)).all()
    with pytest.raises(NodeRefused, match="`control`"):
        run(second, control=object())
    made = second.clone()
    made.add_wrapper_with_key(MODEL, "other", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    with pytest.raises(NodeRefused, match="put the policy node behind"):
        run(made)
    made = second.clone()
    noise_model = torch.linspace(14, 0, STEPS + 1)
    with pytest.raises(NodeRefused, match="its sigmas reach 14"):
        sample(made, torch.randn(1, 4, 3, 8, 12), noise_model, {n: torch.randn(1, 5, 16) for n in ("cond", "uncond")})


def test_bad_policies_are_refused_at_the_node(loaded: ModelPatcher) -> None:
    with pytest.raises(PolicyError, match="MC0301"):
        under(loaded, "teacache", "treshold=0.2")
    with pytest.raises(NodeRefused, match="neither NAME=NUMBER"):
        under(loaded, "teacache", "0.2")
    assert loaded.wrappers == {}


def test_what_comfyui_asks_of_a_node() -> None:
    for name, node in NODE_CLASS_MAPPINGS.items():
        assert NODE_DISPLAY_NAME_MAPPINGS[name]
        assert callable(getattr(node, node.FUNCTION))
        assert node.RETURN_TYPES == ("MODEL",)
        assert list(node.INPUT_TYPES()["required"]) == ["model", "policy", "parameters", "backend"]


def test_the_workflow_names_the_node() -> None:
    """The file that is shipped: its policy node takes what the node takes, and every link has two ends."""
    path = Path(sys.modules[PolicyNode.__module__].__file__ or "").with_name("workflow.json")
    nodes = json.loads(path.read_text())
    (own,) = (n for n in nodes.values() if n["class_type"] in NODE_CLASS_MAPPINGS)
    assert set(own["inputs"]) == set(PolicyNode.INPUT_TYPES()["required"])
    links = [v for n in nodes.values() for v in n["inputs"].values() if isinstance(v, list)]
    assert links
    assert all(source in nodes for source, _ in links)
