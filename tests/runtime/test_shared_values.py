"""Values that blocks share, by themselves: made once for the same inputs, kept for some, and forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mccompile.capture.part import Index, Input
from mccompile.capture.types import Port
from mccompile.runtime import shared
from mccompile.runtime.shared import KEPT, SharedValues


def port(name: str, *depends: str) -> Port:
    return Port(name, 1, "video", frozenset(depends))


class Prelude:
    """Values by name, each made of the inputs that it depends on; it counts how often each group is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *weighing: str) -> None:
        self.made, self.compiled = list[tuple[str, ...]](), list[Any]()
        self.captured: Any = SimpleNamespace(
            streams=(port("x", "latent"),), shared=(port("rope"), port("table"), port("text", "prompt")),
            sources=(port("source", "latent"),), opaque="", entry=("x",),
        )  # fmt: skip
        monkeypatch.setattr(shared, "split_prelude", lambda captured, names: names)
        monkeypatch.setattr(shared, "stripped", lambda names: self.part(names, any(n in weighing for n in names)))

    def part(self, names: tuple[str, ...], weighs: bool) -> Any:
        needed = {"x": "latent", "source": "latent", "text": "prompt"}
        takes = tuple(Input(n) for n in dict.fromkeys(needed[name] for name in names if name in needed))

        def call(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self.made.append(names)
            return tuple((given[0] * 2 if given else torch.zeros(1, 1)).mT for _ in names)

        def find(op: str) -> list[int]:
            return [1] if weighs and op == "get_attr" else []

        return SimpleNamespace(takes=(*takes, Index()), module=call, call=call, graph=SimpleNamespace(find_nodes=find))

    def values(self, *names: str, **more: Any) -> SharedValues:
        return SharedValues(self.captured, names, self.backend, **more)

    def backend(self, module: Any, role: Any) -> Any:
        self.compiled.append((role.part, role.depends))
        return module


def inputs(seed: int = 0) -> dict[str, Any]:
    make = torch.Generator().manual_seed(seed)
    return {"latent": torch.randn(2, 3, generator=make), "prompt": torch.randn(2, 3, generator=make), "steps": 3}


def test_values_are_made_once_for_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    prelude = Prelude(monkeypatch)
    made, given = prelude.values("rope", "text", "rope", "x", "table", "source"), inputs()
    first = made.get(given)
    assert set(first) == {"rope", "text", "x", "table", "source"}
    assert prelude.made == [("rope", "table"), ("text",), ("x", "source")]
    assert prelude.compiled == [("prelude", frozenset({"prompt"})), ("prelude", frozenset({"latent"}))]
    assert torch.equal(first["text"], given["prompt"].mT * 2)
    assert made.get(given)["text"] is first["text"]
    assert len(prelude.made) == 3
    given["prompt"].add_(1)
    again = made.get(given)
    assert torch.equal(again["text"], given["prompt"].mT * 2)
    assert (prelude.made[3:], again["x"] is first["x"]) == ([("text",)], True)
    made.get({**given, "steps": 4})  # a number is part of the sizes
    assert prelude.made[4:] == [("rope", "table"), ("text",), ("x", "source")]


def test_streams_are_laid_out_token_by_token_and_others_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    prelude, given = Prelude(monkeypatch), inputs()
    found = prelude.values("x", "source").get(given)
    assert (found["x"].is_contiguous(), found["source"].is_contiguous()) == (True, False)
    assert not prelude.values("x", as_made=True).get(given)["x"].is_contiguous()
    prelude.captured.opaque = "code of its own"
    assert not prelude.values("x").get(given)["x"].is_contiguous()


def test_values_of_so_many_inputs_are_kept_the_latest_ones_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    prelude = Prelude(monkeypatch)
    made, given = prelude.values("text"), [inputs(seed) for seed in range(KEPT + 1)]
    for one in given[:KEPT]:
        made.get(one)
    made.get(given[0])
    made.get(given[KEPT])
    assert len(prelude.made) == KEPT + 1
    made.get(given[0])
    assert len(prelude.made) == KEPT + 1
    made.get(given[1])
    assert len(prelude.made) == KEPT + 2


def test_tensors_without_versions_are_never_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    prelude = Prelude(monkeypatch)
    made = prelude.values("rope", "text")
    with torch.inference_mode():
        given = inputs()
        for _ in range(2):
            made.get(given)
    assert prelude.made == [("rope",), ("text",), ("text",)]


def test_what_is_forgotten_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of sizes alone stay where tensors may have changed unseen, if no weight is in them."""
    prelude = Prelude(monkeypatch, "table")
    prelude.captured.shared = (port("rope"), port("text", "prompt"))
    made, given = prelude.values("rope", "text"), inputs()
    made.get(given)
    made.forget_values()
    made.get(given)
    assert prelude.made == [("rope",), ("text",), ("text",)]
    made.forget()
    assert set(made.of_shapes(given)) == {"rope"}
    made.get(given)
    assert prelude.made[3:] == [("rope",), ("text",)]
    weighs = Prelude(monkeypatch, "table")
    made = weighs.values("table")
    for _ in range(2):
        made.get(given)
        made.forget_values()
    assert weighs.made == [("table",), ("table",)]
    weighs.captured.opaque = "code of its own"
    made = weighs.values("rope")
    for _ in range(2):
        made.get(given)
        made.forget_values()
    assert weighs.made[2:] == [("rope",), ("rope",)]
