"""What a forward may read beside weights: every change of it is seen, as deep as is looked, and nothing else is."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from mccompile.runtime.reached import DEEPEST, Same, inside, is_data, leaves_in, parts_of, settings_of, told
from mccompile.runtime.settings import code_of, is_plain


@dataclass
class Record:
    value: object


class Own:
    """An object of a user's class."""

    def __init__(self, value: object) -> None:
        self.value = value


WRAPS: dict[str, Callable[[object], object]] = {
    "list": lambda value: [value], "tuple": lambda value: (value,), "dict": lambda value: {"key": value},
    "namespace": lambda value: SimpleNamespace(value=value), "arguments": lambda value: Namespace(value=value),
    "record": Record, "own": Own,
}  # fmt: skip
BELOW = {"list": "[0]", "tuple": "[0]", "dict": "['key']"}


def within(kind: str, leaf: object, depth: int) -> object:
    for _ in range(depth):
        leaf = WRAPS[kind](leaf)
    return leaf


@pytest.mark.parametrize("kind", WRAPS)
@pytest.mark.parametrize("depth", range(DEEPEST + 3))
def test_a_change_is_seen_as_deep_as_is_looked(kind: str, depth: int) -> None:
    """Tensors, not numbers: plain values are compared as a whole, however deep they lie in lists."""
    one, two, again = (within(kind, torch.full((2,), value), depth) for value in (1.0, 2.0, 1.0))
    assert told(one) == told(again)
    assert (told(one) == told(two)) == (depth > DEEPEST)
    found = list(leaves_in(one, "at", ()))
    assert [name for name, _ in found] == ["at" + BELOW.get(kind, ".value") * depth] * (depth <= DEEPEST)
    assert all(value.tolist() == [1.0, 1.0] for _, value in found)  # type: ignore[attr-defined]


def test_what_holds_itself_is_told_to_an_end() -> None:
    ring: list[object] = [torch.ones(1)]
    ring.append(ring)
    assert told(ring) == told(ring)
    assert len(list(leaves_in(ring, "ring", ()))) == DEEPEST


def test_parts_of_the_model_are_looked_at_by_themselves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    parts = parts_of(model)
    assert len(parts) == 3 + len(list(model.parameters())) + len(list(model.buffers()))
    held = {"layer": model[0], "size": 3}
    before = told(held, parts)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert told(held, parts) == before
    assert told({"layer": nn.Linear(2, 2), "size": 3}, parts) != before
    assert list(leaves_in(held, "held", parts)) == [("held['size']", 3)]
    names = [name for name, _ in leaves_in(held, "held", ())]
    assert names == ["held['layer']weight", "held['layer']bias", "held['size']"]
    assert dict(inside(model[1])).keys() == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([1], [2]), ({1}, {2}), ({"a": 1}, {"b": 1}), ([torch.ones(2)], (torch.ones(2),)), (Record(1), Own(1)),
        (np.ones(2), np.zeros(2)), (np.ones(2), np.ones((2, 1))), (np.ones(2), np.ones(2, np.float32)),
        (torch.ones(2), torch.ones(1, 2)), (torch.ones(2), torch.ones(2, dtype=torch.int64)),
        (torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(2, device="meta")), (max, min),
        (torch.ones(2), 1.0),
    ],
)  # fmt: skip
def test_what_differs_is_told_apart(one: object, two: object) -> None:
    assert told(one) == told(one)
    assert told(one) != told(two)


def test_a_tensor_that_was_replaced_by_its_equal_is_the_same_and_one_that_was_moved_is_not() -> None:
    value = torch.arange(4.0)
    before = Same(value)
    assert before == Same(value.clone()) == Same(value)
    value.set_(torch.arange(4.0))  # type: ignore[call-overload]
    assert before != Same(value)
    assert before != value


def test_what_is_data() -> None:
    for value in (SimpleNamespace(a=1), Namespace(a=1), Record(1), Own(1)):
        assert is_data(value)
    for value in (nn.Linear(1, 1), torch.ones(1), Own, max, Own(1).__init__, np, logging.getLogger("a"), [1], 3):
        assert not is_data(value)


class Noted(nn.Module):
    """It has a setting of each kind, and what libraries note in a module."""

    def __init__(self, fuses: bool) -> None:
        super().__init__()
        self.scale, self.table, self.mode = 2.0, {"a": torch.ones(1)}, SimpleNamespace(on=True)
        self.left_out, self.logger, self.bank = 1, logging.getLogger("noted"), torch.ones(2)
        self._internal_dict, self.lora_scale = {"a": 1}, 0.5
        self.grid = np.ones(2)
        if fuses:
            self.fuse_lora = None


class Fusing(Noted):
    """A model of diffusers, which notes how it has fused."""

    def fuse_lora(self) -> None: ...


@pytest.mark.parametrize(("kind", "more"), [(Noted, {"lora_scale"}), (Fusing, set())])
def test_settings_are_what_a_module_has_beside_tensors_and_notes(kind: type[Noted], more: set[str]) -> None:
    module = kind(fuses=False)
    found = settings_of(module, ("left_out",))
    assert {name for name, _ in found} == {"scale", "table", "mode.on", "grid", "training"} | more
    assert settings_of(module, ("left_out",)) == found
    for change in (
        lambda: setattr(module, "scale", 3.0), lambda: module.table.update(a=torch.zeros(1)),
        lambda: setattr(module.mode, "on", 0), lambda: module.grid.fill(2.0), lambda: module.eval(),
    ):  # fmt: skip
        change()
        changed = settings_of(module, ("left_out",))
        assert changed != found
        found = changed
    module.bank.add_(1)
    module.left_out = 2
    assert settings_of(module, ("left_out",)) == found


def test_modules_and_objects_without_attributes_are_no_data() -> None:
    module = nn.Linear(1, 1)
    module.__class__ = type("OfUser", (nn.Linear,), {"__module__": "user.code"})
    assert not is_data(module)
    assert not is_data(type("Empty", (), {"__module__": "user.code"})())
    assert is_data(Own(1))


def test_the_code_of_a_class_is_its_functions_and_settings() -> None:
    class Base(nn.Module):
        limit: ClassVar = [1]
        other = object()
        __marker__ = 3

        def act(self) -> int:
            return 1

    class Inner(Base):
        size = property(lambda self: 1)

    found = dict(code_of(Inner))
    assert {name for name in found if not name.startswith("__")} == {"limit", "act", "size"}
    assert (found["limit"], found["act"] is Base.act) == ((1,), True)
    assert "__marker__" not in found
    assert "forward" not in found
    assert code_of(Inner) == code_of(Inner)


def test_a_tensor_is_never_the_same_as_a_function() -> None:
    assert Same(torch.ones(1)) != Same(len)
    assert Same(len) != Same(torch.ones(1))
    assert Same(len) == Same(len)


def test_tensors_of_a_module_are_told_by_each_of_their_names() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module[1].weight = module[0].weight
    for part in module:
        part.register_buffer("mean", torch.zeros(1) if part is module[0] else module[0].mean)
    assert {"0.weight", "1.weight", "0.mean", "1.mean"} <= {name for name, _ in inside(module)}


def test_a_dictionary_of_plain_values_is_plain() -> None:
    assert is_plain({"a": [1, "b"]}) is True
    assert is_plain({"a": object()}) is False
