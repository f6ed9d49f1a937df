"""Small parts of the runtime by themselves: masks, modes, requests, results that are numbers, models left alone."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mccompile.language.load import load_policy
from mccompile.policy.bind import bind
from mccompile.runtime import nearest
from mccompile.runtime.finite import OnItsWay, finite
from mccompile.runtime.forecast import Weights, weights_of
from mccompile.runtime.masks import AdditiveMasks
from mccompile.runtime.modes import in_eval
from mccompile.runtime.nearest import Filling, give_results, own_results, unit
from mccompile.runtime.request import Request
from mccompile.runtime.rows import Rows
from mccompile.runtime.store import BranchStore
from mccompile.runtime.untouched import Untouched
from mccompile.runtime.upload import parameters


def holding(*dtypes: torch.dtype) -> Any:
    state = {str(n): torch.zeros(1, dtype=dtype) for n, dtype in enumerate((*dtypes, torch.int64))}
    return SimpleNamespace(module=SimpleNamespace(state_dict=lambda: state))


def test_a_mask_is_added_as_it_is_in_the_dtype_of_the_queries() -> None:
    masks, mask = AdditiveMasks(holding(torch.bfloat16)), torch.tensor([True, False])
    assert masks.dtype == torch.bfloat16
    assert AdditiveMasks(holding(torch.bfloat16, torch.float32)).dtype is None
    found = masks.of("mask", mask, torch.float16)
    assert isinstance(found, torch.Tensor)
    assert (found.dtype, found.tolist()) == (torch.float16, [0.0, float("-inf")])
    assert masks.of("mask", mask, torch.float16) is found
    others = ("mask", mask, torch.float32), ("other", mask, torch.float16), ("mask", ~mask, torch.float16)
    for name, value, dtype in others:
        other = masks.of(name, value, dtype)
        assert isinstance(other, torch.Tensor)
        assert other is not found
        assert other.tolist() == [float("-inf") if not one else 0.0 for one in value.tolist()]
    assert masks.of("mask", mask, None) is mask
    added = torch.zeros(2)
    assert masks.of("mask", added, torch.float16) is added
    assert masks.of("mask", 3, torch.float16) == 3


def test_each_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
    model[1].eval()
    model[1][0].train()
    before = [module.training for module in model.modules()]
    with contextlib.suppress(KeyError), in_eval(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before == [True, True, False, True]


def test_a_request_has_one_state_for_each_sample_that_is_run_alone() -> None:
    request, bound = Request(), bind(load_policy("teacache"), {})
    assert request.of(0) is request
    assert request.of(2) is request.of(2)
    assert request.each == (request, request.of(2))
    for number, each in enumerate(request.each):
        store = each.branches["cond"] = BranchStore.empty({"": bound}, 1, 1)
        store.finite = OnItsWay((torch.tensor(number == 1),), None)
    assert request.odd() == 1
    request.planned = {"cond": {"": "a", "rear": "b"}, "uncond": {"": "c"}}  # type: ignore[dict-item]
    assert request.plans == {"cond": "a", "cond rear": "b", "uncond": "c"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_results_of_which_one_is_no_number_are_told(value: float) -> None:
    good, odd, whole = torch.ones(2), torch.tensor([1.0, value]), torch.tensor([3])
    told = {True: finite((good, whole, 3), ()), False: finite((good, odd), ())}
    for wanted, found in told.items():
        assert found is not None
        assert bool(found.arrived()[0]) is wanted
    assert finite((whole, 3), ()) is None
    assert finite((odd,), (odd,)) is None  # it came as it is given back
    assert finite((odd.clone(),), (odd,)) is not None


def test_the_host_waits_for_what_is_on_its_way() -> None:
    waited, value = list[bool](), torch.ones(1)
    copied: Any = SimpleNamespace(synchronize=lambda: waited.append(True))
    assert OnItsWay((value,), copied).arrived() == (value,)
    assert waited == [True]
    assert OnItsWay.of(value, value).copied is None


def test_only_the_last_result_by_itself_is_plain() -> None:
    for values, passed, plain in (
        ((1.0,), (), True), ((1.0, 0.0), (0.0,), True), ((2.0,), (), False), ((1.0, 0.5), (), False),
        ((0.0, 1.0), (), False), ((1.0,), (0.5,), False), ((1.0,), (np.zeros((1, 1)),), False),
        ((1.0, np.zeros((1, 1))), (), False),
    ):  # fmt: skip
        assert Weights(values, passed).plain is plain


def test_a_sum_takes_as_many_results_as_are_kept() -> None:
    kept, passed = [torch.full((1, 2), n).half() for n in (1.0, 10.0)], [torch.full((1, 2), 100.0).half()]
    assert Weights((2.0, 3.0, 5.0), (0.5, 7.0)).sum(kept, 1, passed).tolist() == [[82.0, 82.0]]
    assert Weights((2.0, 3.0), (0.5,)).sum(kept[:1], 1).tolist() == [[2.0, 2.0]]
    nothing = Weights((0.0, 0.0)).sum(kept, None)
    assert (nothing.tolist(), nothing.dtype, kept[0].tolist()) == ([[0.0, 0.0]], torch.float16, [[1.0, 1.0]])
    apart = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    by_token = Weights((apart,)).sum([torch.ones(2, 4, 3)], 2)
    assert by_token[:, 0].tolist() == apart.tolist()


def test_weights_in_which_all_cells_agree_are_numbers() -> None:
    cells = np.ones((3, 2, 1, 1, 2), np.float32)
    cells[1, 1, 0, 0, 1] = 4.0
    cells[2] = 0.25
    found = weights_of(cells, 2)
    assert (found.values[0], found.passed) == (1.0, (0.25,))
    assert weights_of(cells[:, :1, :, :, :1], 2).values == (1.0, 1.0)
    assert found.values[1].tolist() == [[1.0, 1.0], [1.0, 4.0]]  # type: ignore[union-attr]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("add", [False, True])
def test_results_are_given_to_the_tokens_that_take_them(axis: int, add: bool) -> None:
    filling = Filling(torch.tensor([1, 2, 4]), torch.tensor([[0, 1, 1], [1, 1, 0]]))
    made = torch.tensor([[[10.0, 20.0]], [[30.0, 40.0]]]).movedim(2, axis)
    into = torch.arange(10.0).view(2, 1, 5).movedim(2, axis).contiguous()
    given = torch.tensor([[[0, 10.0, 20, 0, 20]], [[0, 40.0, 40, 0, 30]]])
    own = torch.arange(10.0).view(2, 1, 5)
    expected = own + given if add else torch.where(given == 0, own, given)
    give_results(filling, into, made, axis, add)
    assert torch.equal(into.movedim(axis, 2), expected)


def test_without_others_each_token_has_its_own_results() -> None:
    found = own_results(torch.tensor([3, 5]), 2)
    assert (found.filled.tolist(), found.taken.tolist()) == ([3, 5], [[0, 1], [0, 1]])
    assert unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_products_are_made_in_pieces_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows at a time as fit, and one where not even that many do."""
    left, right = torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    for most, rows in ((40, [4, 3]), (39, [3, 3, 1]), (70, [7]), (3, [1] * 7)):
        monkeypatch.setattr(nearest, "AT_ONCE", most)
        pieces = list(nearest._products(left, right))
        assert [piece.size(1) for piece in pieces] == rows
        torch.testing.assert_close(torch.cat(pieces, 1), left @ right.mT)


def test_rows_whose_keys_are_written_are_those_with_results() -> None:
    index, filled, other = torch.tensor([1]), torch.tensor([1, 2]), torch.tensor([0])
    vectors = {"video": index, "3|5+video": other}
    alone = Rows(None, 1, False, index, {}, {}, {}, vectors, {})
    assert (alone.written("video") is index, alone.written("3|5+video") is other) == (True, True)
    filling = Rows(None, 1, False, index, {}, {}, {}, vectors, {}, Filling(filled, torch.zeros(1, 2)))
    assert (filling.written("video") is filled, filling.written("3|5+video") is other) == (True, True)


def test_parameters_are_made_once_for_their_values() -> None:
    bound = bind(load_policy("teacache"), {"threshold": 0.125, "warmup": 3})
    found = parameters(("warmup", "threshold"), bound, torch.device("cpu"))
    assert (found.tolist(), found.dtype) == ([3.0, 0.125], torch.float32)
    assert parameters(("warmup", "threshold"), bound, torch.device("cpu")) is found


class Processor:
    """What runs in the place of a module's own code."""

    def __init__(self) -> None:
        self.scale = 1.0


class Other(Processor):
    """Another one."""


class OfLibrary(Processor):
    """One of diffusers: it is looked at where it runs in the place of a module's own code."""

    __module__ = "diffusers.models.attention_processor"


class Model(nn.Module):
    """It holds something of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.empty, self.table = nn.Linear(2, 2), dict[str, int](), {"a": [torch.ones(1)]}
        self.pair, self.grid, self.state = ([1],), np.ones(2), SimpleNamespace(on=True)
        self.processor, self.one.processor = Processor(), OfLibrary()
        self.register_buffer("mean", torch.zeros(2))


@pytest.mark.parametrize(
    "touch",
    [
        lambda m: setattr(m, "more", 1), lambda m: m.empty.update(a=1), lambda m: m.table.update(b=1),
        lambda m: m.table["a"].append(1), lambda m: m.table["a"][0].add_(1), lambda m: m.pair[0].append(2),
        lambda m: m.grid.fill(2.0), lambda m: setattr(m.state, "on", False), lambda m: m.mean.add_(1),
        lambda m: m.one.register_forward_hook(print), lambda m: setattr(m.processor, "scale", 2.0),
        lambda m: setattr(m, "processor", Processor()), lambda m: m.eval(),
        lambda m: setattr(m.one.weight, "data", m.one.weight.data.clone()), lambda m: delattr(m, "state"),
        lambda m: setattr(m.mean, "data", torch.zeros(1)), lambda m: setattr(m, "__class__", type("Sub", (Model,), {})),
        lambda m: setattr(m.processor, "__class__", Other), lambda m: setattr(m.one.processor, "scale", 2.0),
        lambda m: setattr(Model, "scale", 3.0),
    ],
)  # fmt: skip
def test_every_touch_of_a_model_is_seen(touch: Any) -> None:
    model = Model()
    look = Untouched(model)
    assert look.still()
    try:
        touch(model)
        assert not look.still()
    finally:
        if "scale" in vars(Model):
            del Model.scale
