"""`mccompile validate`: every law holds on a right model, and each is seen to fail on a fault of its own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mccompile import api
from mccompile.capture import capture, flat_inputs
from mccompile.capture.part import Part, Positions, Stream
from mccompile.capture.run import run_full
from mccompile.generate.part_laws import kept_apart
from mccompile.generate.subjects import ModuleSubject
from mccompile.generate.validate import LawVerdict, validate
from mccompile.language.load import load_policy
from mccompile.language.source import Source
from mccompile.lowering.draft import Draft
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.step import Step
from tests.zoo import ToyTransformer, zoo

POLICY = """policy moving {
  param threshold = 0.4 in 0.01..5
  signal motion = frame_diff(block_output) | min_max(floor = 20%)
  phase warmup for 1 step { compute }
  phase fine              { reuse token while accumulate(rel_l1(modulation) * motion) < threshold }
  layers blocks[*] { keep residual }
}
"""
LAWS = ("compute", "exact", "rows", "kept", "tokens", "reuse", "finite", "repeat", "size", "folding")


class Named(nn.Module):
    """The toy transformer under the names that arguments usually have."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = ToyTransformer(layers=2)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.toy(hidden_states, timestep / 1000)


def subject_of(dtype: torch.dtype) -> ModuleSubject:
    torch.manual_seed(0)
    model = Named().eval().requires_grad_(False).to(dtype)

    def call(*size: int) -> api.ExampleCall:
        latents = torch.randn(1, 4, *size, dtype=dtype)
        return {"hidden_states": latents, "timestep": torch.full((1,), 500.0, dtype=dtype)}

    return ModuleSubject.of(model, call(3, 6, 10), call(4, 10, 14), 4)


@pytest.fixture(scope="module")
def shared() -> ModuleSubject:
    return subject_of(torch.float32)


@pytest.fixture
def subject(shared: ModuleSubject) -> ModuleSubject:
    return dataclasses.replace(shared, _now=None, _clock=None, _requests=0)


def tried(subject: ModuleSubject) -> LawVerdict:
    return validate(subject, load_policy(Source("moving.policy", POLICY)), {})


def failing(verdict: LawVerdict) -> set[str]:
    return {law.name for law in verdict.laws if law.outcome == "fails"}


def test_every_law_holds(subject: ModuleSubject) -> None:
    verdict = tried(subject)
    assert tuple(law.name for law in verdict.laws) == LAWS
    assert {law.outcome for law in verdict.laws} == {"holds"}
    assert verdict.holds
    assert "in float32" in verdict.bound.in_words()


def test_bfloat16_has_a_bound_of_its_own(subject: ModuleSubject) -> None:
    wide = tried(subject_of(torch.bfloat16))
    assert failing(wide) == set()
    assert wide.bound.value > 100 * tried(subject).bound.value
    assert "in bfloat16" in wide.bound.in_words()


def _outputs_off(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    own = CompiledModel._flat
    patch.setattr(CompiledModel, "_flat", lambda *args: tuple(x * 1.001 for x in own(*args)))


def _rows_off(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    """The row form has another activation than the full form."""
    (kind,) = subject.prepared.model.kinds
    assert kind.partial is not None
    graph = copy.deepcopy(kind.partial.module)
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default):
        node.target = torch.ops.aten.relu.default
    graph.recompile()
    bent = dataclasses.replace(kind, partial=dataclasses.replace(kind.partial, module=graph))
    model = dataclasses.replace(subject.prepared.model, kinds=(bent,))
    subject.prepared = dataclasses.replace(subject.prepared, model=model)


def _stream_baked(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    """The row form of the first block has the stream of the recorded call in it."""
    captured = subject.prepared.model
    (kind,), (first, *others) = captured.kinds, captured.blocks
    assert kind.partial is not None
    draft = Draft(kind.partial)
    stream, rows = draft.takes[Stream(captured.entry[0])], draft.takes[Positions("video")]
    recorded = run_full(captured, tuple(subject.prepared.calls[0].values())).values[captured.entry[0]]
    assert isinstance(recorded, torch.Tensor)
    draft._root.register_buffer("recorded", recorded)
    with draft.graph.inserting_after(draft.graph.find_nodes(op="placeholder")[-1]):
        whole = draft.graph.get_attr("recorded")
    with draft.graph.inserting_after(whole):
        place = draft.graph.call_function(torch.ops.aten.remainder.Scalar, (rows, recorded.size(1)))
    with draft.graph.inserting_after(place):
        stream.replace_all_uses_with(draft.graph.call_function(torch.ops.aten.index_select.default, (whole, 1, place)))
    kinds = (kind, dataclasses.replace(kind, partial=draft.part()))
    blocks = (dataclasses.replace(first, kind=1), *others)
    subject.prepared = dataclasses.replace(
        subject.prepared, model=dataclasses.replace(captured, kinds=kinds, blocks=blocks)
    )


def _residual_off(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    own = Step.reuse

    def grown(self: Step, *more: object) -> object:
        for kept in self.memory.kept.values():
            kept.mul_(1.01)
        return own(self, *more)  # type: ignore[arg-type]

    patch.setattr(Step, "reuse", grown)


def _not_numbers(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    patch.setattr(Step, "decide", _spoiled(Step.decide))


def _spoiled(own: Callable[..., object]) -> Callable[..., object]:
    def decide(self: Step, env: object) -> object:
        if self.engine.lowered.policy.name == "moving" and self.moment.row:
            for kept in self.memory.kept.values():
                kept.fill_(float("inf"))
        return own(self, env)

    return decide


def _second_differs(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    """A second run of the policy has another threshold."""
    own = ModuleSubject.run
    seen: list[object] = []

    def run(self: ModuleSubject, size: int) -> torch.Tensor:
        now = self._now
        if isinstance(now, CompiledModel) and "threshold" in now.runner.bound.values:
            if any(now is one for one in seen):
                now.set_parameters(threshold=5.0)
            seen.append(now)
        return own(self, size)

    patch.setattr(ModuleSubject, "run", run)


def _folded_otherwise(patch: pytest.MonkeyPatch, subject: ModuleSubject) -> None:
    own = CompiledModel.__init__

    def other(self: CompiledModel, model: nn.Module, lowered: object, bound: object, *more: object) -> None:
        own(self, model, lowered, bound, *more)  # type: ignore[arg-type]
        if not self.runner.fold and lowered.policy.name == "moving":  # type: ignore[attr-defined]
            self.set_parameters(threshold=5.0)

    patch.setattr(CompiledModel, "__init__", other)


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (_outputs_off, {"compute", "exact", "tokens", "size"}),
        (_rows_off, {"rows", "kept", "tokens"}),
        (_stream_baked, {"kept", "tokens"}),
        (_residual_off, {"reuse"}),
        (_not_numbers, {"finite", "repeat", "size", "folding"}),
        (_second_differs, {"repeat"}),
        (_folded_otherwise, {"folding"}),
    ],
)
def test_each_law_fails_on_its_fault(
    fault: Callable[[pytest.MonkeyPatch, ModuleSubject], None], wrong: set[str], subject: ModuleSubject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fault(monkeypatch, subject)
    verdict = tried(subject)
    assert not verdict.holds
    assert failing(verdict) == wrong


def test_kept_rows_are_read_by_what_mixes_tokens_too() -> None:
    """A convolution over the tokens reads kept rows of its input; without them the law is off by a third."""
    family = zoo("toy_convolution")
    captured = capture(family.model(torch.float32), *(family.call(s, 1, torch.float32) for s in family.sizes[:2]))
    call = family.call(family.sizes[2], 1, torch.float32)
    inputs = dict(zip(captured.inputs, flat_inputs(captured, call), strict=True))
    off, _ = kept_apart(captured, inputs)
    assert 0 < off < 1e-5
    (kind,) = captured.kinds
    unread = dataclasses.replace(kind, full=stripped_of_writes(kind.full))
    assert kept_apart(dataclasses.replace(captured, kinds=(unread,)), inputs)[0] > 0.01


def stripped_of_writes(part: Part) -> Part:
    """The part without its writes into buffers, of which its inputs are left."""
    draft = Draft(part)
    for node in draft.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        draft.graph.erase_node(node)
    return draft.part()
