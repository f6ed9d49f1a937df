"""Which call of the other guidance branch is expected, and whether a call is the one that was."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from mccompile.policy.phases import Grid
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import ChunkTime, Moment
from mccompile.runtime.pair import Foreseen, Foresight, _agree

MOMENT = Moment("run", 5, "cond", Grid(1, (0.0,), (0.0,)), (ChunkTime(0, "active", 0),), 1)
BEFORE = replace(MOMENT, row=4)


def test_what_both_were_given_alike_is_alike_again() -> None:
    latent, new, text, other = (torch.full((2,), float(n)) for n in range(4))
    known = Foresight()
    known.last["uncond"] = {"latent": latent, "text": other, "size": 3}, replace(BEFORE, branch="uncond")
    known.last["cond"] = {"latent": latent, "text": text, "size": 3}, BEFORE
    found = known.foresee({"latent": new, "text": text, "size": 4}, MOMENT)
    assert found is not None
    assert found.moment == replace(MOMENT, branch="uncond")
    assert found.inputs["latent"] is new
    assert found.inputs["text"] is other
    assert found.inputs["size"] == 4


def test_a_call_is_foreseen_only_where_one_other_branch_took_part_in_the_row_before() -> None:
    given = {"latent": torch.ones(2)}
    own, other = (given, BEFORE), (given, replace(BEFORE, branch="uncond"))
    late = replace(BEFORE, branch="uncond", row=3)
    earlier = (given, replace(BEFORE, row=3))
    third = (given, replace(BEFORE, branch="third"))
    for last, foreseen in (
        ({"cond": own, "uncond": other}, True), ({"cond": own}, False), ({"uncond": other}, False),
        ({"cond": earlier, "uncond": other}, False), ({"cond": own, "uncond": (given, late)}, False),
        ({"cond": own, "uncond": other, "third": third}, False),
        ({"cond": own, "uncond": other, "third": (given, replace(third[1], row=3))}, True),
    ):  # fmt: skip
        known = Foresight(last={**last})
        assert (known.foresee(given, MOMENT) is not None) is foreseen


def expected(**inputs: Any) -> Foreseen:
    found = Foreseen.of(MOMENT, inputs)
    assert found is not None
    return found


def test_the_expected_call_has_the_same_tensors_or_equal_ones() -> None:
    latent = torch.ones(2)
    call = expected(latent=latent, size=3)
    assert call.is_it({"latent": latent, "size": 3}, MOMENT)
    assert call.is_it({"latent": torch.ones(2), "size": 3}, MOMENT)
    for other in ({"latent": torch.zeros(2), "size": 3}, {"latent": torch.ones(1), "size": 3},
                  {"latent": latent, "size": 4}):  # fmt: skip
        assert not call.is_it(other, MOMENT)
    assert not call.is_it({"latent": latent, "size": 3}, replace(MOMENT, row=6))


def test_a_tensor_that_was_changed_is_not_the_one_that_was_run() -> None:
    latent = torch.ones(2)
    call = expected(latent=latent)
    latent.add_(0)
    assert not call.is_it({"latent": latent}, MOMENT)
    assert not call.is_it({"latent": torch.ones(2)}, MOMENT)


def test_nothing_is_foreseen_of_tensors_whose_changes_go_unseen() -> None:
    with torch.inference_mode():
        inferred = torch.ones(2)
    assert Foreseen.of(MOMENT, {"latent": inferred, "size": 3}) is None


def test_the_follower_needs_no_row_that_the_leader_does_not_compute() -> None:
    full, reuse, skip, graph, copy = (Action(k, 0, None, "") for k in ("compute", "reuse", "skip", "dynamic", "follow"))

    def agree(leader: tuple[Action, ...], follower: tuple[Action, ...]) -> bool:
        steps: list[Any] = [SimpleNamespace(actions=(actions, actions)) for actions in (leader, follower)]
        return _agree(*steps)

    assert agree((full, reuse, skip, copy), (full, graph, skip, copy))
    assert agree((full,), (reuse,))
    assert not agree((reuse,), (full,))
    assert not agree((full, graph), (full, full))
    assert not agree((full,), (skip,))
    assert not agree((skip,), (reuse,))
