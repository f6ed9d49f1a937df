"""Calls of several samples: what they share is repeated, and what each has of its own is taken out, once per tensor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.errors import CallError
from mccompile.runtime import one_each
from mccompile.runtime.one_by_one import KEPT, OneByOne, joined
from mccompile.runtime.one_each import OneEach, Sharing, sharing
from mccompile.runtime.operands import one_sample, own_count


def captured(**more: Any) -> Any:
    each = ("latent", "text", "time")
    return SimpleNamespace(samples=each, each=each, moving=frozenset({"latent", "time"}), model_class="Model", **more)


def call(latent: int = 2, text: int = 1, time: int = 2, **more: Any) -> dict[str, Any]:
    sizes = {"latent": latent, "text": text, "time": time}
    return {**{name: torch.arange(float(3 * n)).view(n, 3) for name, n in sizes.items()}, "mask": torch.ones(4), **more}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (call(), Sharing(("text",), 2)),
        (call(text=2), None),
        (call(latent=1, time=1), None),
        (call(latent=3, time=2), None),
        (call(time=1, latent=2), None),
        (call(text=3), None),
        (call(latent=2, time=2, text=5), None),
        (call(time=7), None),
        ({**call(), "time": 900}, Sharing(("text",), 2)),
    ],
)
def test_what_samples_share_is_told_by_what_moves(given: dict[str, Any], found: Sharing | None) -> None:
    assert sharing(captured(), given) == found


def test_shared_tensors_are_repeated_once() -> None:
    each, given, shared = OneEach(), call(size=5), Sharing(("text",), 2)
    first = each.repeated(given, shared)
    assert torch.equal(first["text"], torch.cat([given["text"]] * 2))
    assert all(first[name] is given[name] for name in ("latent", "time", "mask", "size"))
    assert each.repeated(given, shared)["text"] is first["text"]
    assert each.repeated(given, None) == given
    assert each.repeated(given, Sharing(("text",), 3))["text"].shape == (3, 3)  # type: ignore[union-attr]
    given["text"].add_(1)
    assert torch.equal(each.repeated(given, shared)["text"], torch.cat([given["text"]] * 2))
    again = each.repeated(given, shared)["text"]
    each.forget()
    assert each.repeated(given, shared)["text"] is not again


def test_only_the_latest_repeated_tensors_are_kept() -> None:
    each, shared = OneEach(), Sharing(("text",), 2)
    calls = [call() for _ in range(one_each.KEPT + 1)]
    made = [each.repeated(one, shared)["text"] for one in calls[:-1]]
    assert each.repeated(calls[0], shared)["text"] is made[0]  # used again, so the second one is the oldest
    each.repeated(calls[-1], shared)
    again = [each.repeated(calls[i], shared)["text"] is made[i] for i in (0, 2, 1)]
    assert again == [True, True, False]


def test_each_sample_has_its_own_entries_and_those_of_all() -> None:
    apart, given = OneByOne(captured()), call(size=5)
    one, two = apart.parts(given)
    for place, part in enumerate((one, two)):
        assert part["latent"].tolist() == given["latent"][place : place + 1].tolist()  # type: ignore[union-attr]
        assert all(part[name] is given[name] for name in ("text", "mask", "size"))
        part["latent"].zero_()  # type: ignore[union-attr]
    assert given["latent"].sum() == 15
    again = apart.parts(given)
    assert (again[0]["latent"] is one["latent"], again[1]["time"] is two["time"]) == (True, True)
    given["latent"].add_(1)
    assert apart.parts(given)[0]["latent"].tolist() == [[1.0, 2.0, 3.0]]  # type: ignore[union-attr]
    apart.forget()
    assert apart.parts(given)[1]["time"] is not two["time"]
    single = call(latent=1, time=1)
    assert apart.parts(single)[0] is single


def test_parts_of_a_few_calls_stay_known() -> None:
    apart, given = OneByOne(captured()), call()
    first = apart.parts(given)[1]["latent"]
    size = KEPT * len(given) * 2 // 4  # calls, of four parts each
    for more in range(size - 1):
        apart.parts(call(extra=more))
    assert apart.parts(given)[1]["latent"] is first
    for more in range(2 * size):
        apart.parts(call(extra=more))
    assert apart.parts(given)[1]["latent"] is not first


def test_numbers_of_samples_that_differ_are_refused() -> None:
    with pytest.raises(CallError, match="`latent` has 2, `text` has 3, `time` has 2 samples"):
        OneByOne(captured()).parts(call(text=3))


def test_inputs_of_inference_mode_are_never_taken_for_what_they_were() -> None:
    """They count no versions."""
    with torch.inference_mode():
        given = call()
    each, apart = OneEach(), OneByOne(captured())
    for _ in range(2):
        with torch.inference_mode():
            given["text"].add_(1)
            given["latent"].add_(1)
        assert torch.equal(each.repeated(given, Sharing(("text",), 2))["text"], given["text"].repeat(2, 1))
        assert torch.equal(apart.parts(given)[1]["latent"], given["latent"][1:])


def test_results_of_samples_are_put_together() -> None:
    one, two = torch.zeros(1, 2), torch.ones(1, 2)
    assert joined([(one, 5)]) == (one, 5)
    found = joined([(one, 5), (two, 5)])
    assert torch.equal(found[0], torch.cat([one, two]))
    assert found[1] == 5


def test_what_is_no_batch_has_no_samples() -> None:
    value = torch.arange(6.0).view(3, 2)
    assert one_sample(value, 1, 3).tolist() == [[2.0, 3.0]]
    assert one_sample(value, None, 3) is value
    assert one_sample(value, 1, 2) is value
    assert one_sample(7, 1, 3) == 7
    assert one_sample(torch.tensor(2.0), 0, 1) == 2.0
    assert (own_count(12, None, 3), own_count(12, 5, 3)) == (4, 5)
