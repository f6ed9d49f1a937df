"""Each pass: what it makes of a real model, as golden text, and where it refuses. And the spec, seen to fail."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mccompile import ir
from mccompile.capture.part import Buffer, Output, Part, RowSource, Shared, Stream
from mccompile.capture.types import CapturedModel, Refusal
from mccompile.language.load import load_policy
from mccompile.lowering import lower as lowering
from mccompile.lowering.after import PASSES, show_steps, steps_of, written
from mccompile.lowering.draft import Draft, Rewritten
from mccompile.lowering.errors import NoWindow, SourceNotFound, UnknownPass
from mccompile.lowering.host import ChangeRow
from mccompile.lowering.lower import lower
from mccompile.lowering.pipeline import Form, Pass, Pieces, Place, run_passes
from mccompile.lowering.prefixes import BOUNDS
from mccompile.lowering.spec import BrokenPart, verifying
from mccompile.studio.bench.subjects import TINY
from tests.lowering.refusing import REFUSED, Refused

aten = torch.ops.aten
GOLDEN = Path(__file__).parent / "golden"
POLICY = """policy example {
  signal drift = rel_l1(modulated_input)
  phase all { reuse chunk while accumulate(drift) < 10% }
  layers blocks[*] { keep residual }
  cache { dtype: bfloat16  window: 2 chunks }
}
"""
MERGED = """policy example {
  phase all { compute top 50% of tokens by magnitude(latent, over = token) }
  layers blocks[*] { keep residual  reuse as nearest(residual, by = latent) }
}
"""


PICKED = """policy example {
  phase all { reuse chunk while accumulate(rel_l1(latent)) < 10% }
  layers blocks[*] { keep residual }
  cache { window: 1 chunks  keys: top 1 chunks by dilate(attention(key), 3) - redundancy(key)  dtype: bfloat16 }
}
"""
OTHERWISE = {"fill_rows": MERGED, "pick_keys": PICKED}
"""Policies that bring in passes which POLICY does not."""


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    return TINY.prepared(TINY.model(torch.device("cpu"), torch.float32)).model


@pytest.fixture(scope="module")
def policy() -> ir.PolicyIR:
    return load_policy(POLICY)


def masks(captured: CapturedModel) -> frozenset[str]:
    found = (s.mask for k in captured.kinds if k.partial is not None for s in k.partial.attentions)
    return frozenset(m.name for m in found if m is not None)


@pytest.mark.parametrize("name", [p.name for p in PASSES])
def test_a_pass_makes_of_a_model_what_is_written(
    name: str, captured: CapturedModel, policy: ir.PolicyIR, update_golden: bool
) -> None:
    policy = load_policy(OTHERWISE[name]) if name in OTHERWISE else policy
    steps = steps_of(name, captured, policy, masks(captured))
    assert any(step.refusal is None for step in steps)
    before = [line for s in steps for line in ("", *written(f"{s.place[0]}_{s.place[1]}", s.before))]
    texts = {"before": "\n".join(before) + "\n", "after": show_steps(name, policy.name, steps)}
    for when, text in texts.items():
        path = GOLDEN / f"{name}.{when}.txt"
        if update_golden:
            path.write_text(text)
        assert text == path.read_text()


def test_every_golden_file_is_of_a_pass() -> None:
    wanted = {f"{p.name}.{when}.txt" for p in PASSES for when in ("before", "after")}
    assert {path.name for path in GOLDEN.iterdir()} == wanted


def test_passes_have_names_of_their_own_and_say_when_they_refuse() -> None:
    assert len({p.name for p in PASSES}) == len(PASSES)
    for one in PASSES:
        text = sys.modules[one.rewrite.__module__].__doc__
        assert text is not None
        assert all(f"\n{word}" in text for word in ("before:", "after:", "refuses when:")), one.name


CASES = [(name, case) for name, cases in REFUSED.items() for case in cases]


def test_every_pass_has_a_model_on_which_it_refuses() -> None:
    assert set(REFUSED) == {p.name for p in PASSES}


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.why}" for name, case in CASES])
def test_a_pass_refuses_its_model_and_rewrites_the_mended_one(name: str, case: Refused) -> None:
    one = next(p for p in PASSES if p.name == name)
    text = str(case.part.graph)
    refused = one.rewrite(case.part, case.setting)
    assert isinstance(refused, Refusal)
    assert case.reason in f"{refused.site}: {refused.reason}"
    assert str(case.part.graph) == text
    assert isinstance(one.rewrite(case.mended, case.mended_setting), Rewritten)


def test_an_unknown_pass_gets_a_suggestion(captured: CapturedModel, policy: ir.PolicyIR) -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors" / "MC0506.md").read_text()
    with pytest.raises(UnknownPass) as caught:
        steps_of("hoists", captured, policy, frozenset())
    assert str(caught.value) in page
    with pytest.raises(UnknownPass, match="the passes are drop_buffers"):
        steps_of("quantise", captured, policy, frozenset())


def test_what_a_policy_does_not_ask_for_is_said(captured: CapturedModel) -> None:
    compute = load_policy("compute")
    assert show_steps("keep_encoded", "compute", steps_of("keep_encoded", captured, compute, frozenset())) == (
        "pass keep_encoded: policy compute does not ask for it\n"
    )


def test_lowering_holds_what_each_pass_made_against_the_spec(captured: CapturedModel, policy: ir.PolicyIR) -> None:
    all_keys = dataclasses.replace(policy, cache=dataclasses.replace(policy.cache, window=None))
    for one in (all_keys, load_policy("motioncache"), load_policy("compute"), load_policy(MERGED)):
        for proved in (frozenset[str](), masks(captured)):
            lower(captured, one, proved, watch=verifying)
    for windowed in (policy, load_policy(PICKED)):
        lower(captured, windowed, masks(captured), watch=verifying)


def refused_on(kind: int) -> tuple[Pass[Any], ...]:
    """The exact passes, where that of the modulated input refuses one kind of block."""

    def setting(pieces: Pieces, place: Place) -> int:
        return place[1]

    def rewrite(part: Part, at: int) -> Rewritten | Refusal:
        return Refusal("queries", "of another make") if at == kind else Rewritten(part, (part,))

    return tuple(
        dataclasses.replace(one, rewrite=rewrite, setting=setting) if one.name == "modulated_input" else one
        for one in lowering.EXACT
    )


def test_a_modulated_input_is_needed_of_the_first_block_alone(
    captured: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = tuple(dataclasses.replace(b, kind=1 if b.index == 0 else 0) for b in captured.blocks)
    two = dataclasses.replace(captured, kinds=captured.kinds * 2, blocks=blocks)
    reading = load_policy(POLICY.replace("rel_l1(modulated_input)", "rel_l1(latent) + rel_l1(modulated_input)"))
    reading = dataclasses.replace(reading, cache=dataclasses.replace(reading.cache, window=None))
    monkeypatch.setattr(lowering, "EXACT", refused_on(0))
    assert lower(two, reading).modulated is not None
    monkeypatch.setattr(lowering, "EXACT", refused_on(1))
    with pytest.raises(SourceNotFound, match=r"reads `modulated_input`, which was not found .*: of another make"):
        lower(two, reading)


STATIC = "policy p { phase all { reuse chunk while rel_l1(modulation) < 10% } layers blocks[*] { keep residual } }"


def test_lowering_is_watched_and_folds_what_the_plan_can_measure(captured: CapturedModel) -> None:
    seen: list[str] = []
    folded = lower(captured, load_policy(STATIC), watch=lambda step, pieces: seen.append(step.name))
    whole = lower(captured, load_policy(STATIC), fold=False)
    assert list(dict.fromkeys(seen)) == [one.name for one in lowering.EXACT if one.name != "modulated_input"]
    rows = [[type(row) for decide in one.decides.values() if decide for row in decide.host] for one in (folded, whole)]
    assert [row.count(ChangeRow) for row in rows] == [1, 0]
    assert folded.observe is None
    assert folded.modulated is None
    assert folded.refusals == captured.refusals


def test_a_model_without_rows_decides_per_step_and_says_so(captured: CapturedModel) -> None:
    found = lower(dataclasses.replace(captured, gather=None), load_policy(STATIC))
    assert found.rows is None
    assert [refusal.site for refusal in found.refusals[len(captured.refusals) :]] == ["phase all of p"]


@pytest.mark.parametrize(
    ("batch", "why", "together"), [(True, "", "cond"), (True, "they do not", None), (False, "", None)]
)
def test_branches_run_together_where_they_can(
    batch: bool, why: str, together: str | None, captured: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "_apart", lambda *_: why)
    shared = dataclasses.replace(load_policy(STATIC), branches=ir.Branches("cond", batch=batch))
    assert lower(captured, shared).together == together


def test_a_window_over_masks_that_are_not_proved_is_refused(captured: CapturedModel, policy: ir.PolicyIR) -> None:
    with pytest.raises(NoWindow, match=r"the mask of `blocks\.0\.attn1` is not known to hide later chunks"):
        lower(captured, policy, frozenset())


def without_a_placeholder(part: Part) -> Part:
    return dataclasses.replace(part, takes=part.takes[1:])


def with_a_result_too_many(part: Part) -> Part:
    return dataclasses.replace(part, gives=(*part.gives, Output(9)))


def with_bounds(part: Part) -> Part:
    draft = Draft(part)
    draft.take(BOUNDS, "bounds")
    return draft.part()


def with_a_value_of_another_model(part: Part) -> Part:
    draft = Draft(part)
    draft.take(Shared("elsewhere"), "elsewhere")
    return draft.part()


def with_a_source(part: Part) -> Part:
    draft = Draft(part)
    draft.rename({next(o for o in draft.takes if isinstance(o, Shared)): RowSource("elsewhere")})
    return draft.part()


def writing_to_a_stream(part: Part) -> Part:
    draft = Draft(part)
    stream = next(n for o, n in draft.takes.items() if isinstance(o, Stream))
    draft.graph.call_function(aten.copy_.default, (stream, stream))
    return draft.part()


def writing_to_a_view_of_a_stream(part: Part) -> Part:
    draft = Draft(part)
    stream = next(n for o, n in draft.takes.items() if isinstance(o, Stream))
    view = draft.graph.call_function(aten.select.int, (stream, 0, 0))
    draft.graph.call_function(aten.copy_.default, (view, view))
    return draft.part()


def with_a_lost_attention(part: Part) -> Part:
    site = dataclasses.replace(part.attentions[0], node="nowhere", keys=Buffer("x"))
    return dataclasses.replace(part, attentions=(site,))


WRONG: tuple[tuple[Callable[[Part], Part], str, str], ...] = (
    (without_a_placeholder, ".*", "placeholders are the operands"),
    (with_a_result_too_many, "output", "outputs are the results"),
    (with_bounds, "bounds", "a plain part takes no PerSelection"),
    (with_a_value_of_another_model, "elsewhere", "does not exist in the model"),
    (with_a_source, ".*", "a plain part takes no RowSource"),
    (writing_to_a_stream, "copy_.*", "writes go to buffers"),
    (writing_to_a_view_of_a_stream, "copy_.*", "writes go to buffers"),
    (with_a_lost_attention, "nowhere", "attentions stand in the graph"),
)


@pytest.mark.parametrize(("wrong", "node", "rule"), WRONG, ids=[w.__name__ for w, _, _ in WRONG])
def test_a_wrong_pass_is_caught_by_name_node_and_rule(
    wrong: Callable[[Part], Part], node: str, rule: str, captured: CapturedModel, policy: ir.PolicyIR
) -> None:
    one = Pass("wrong", (Form.PLAIN,), lambda part, _: Rewritten(wrong(part)), lambda pieces, place: None)
    pieces = Pieces.of(captured, policy, frozenset())
    (step,) = run_passes((one,), pieces)
    with pytest.raises(BrokenPart, match=f"pass wrong broke the part plain 0 at `{node}`: .*{rule}"):
        verifying(step, pieces)
