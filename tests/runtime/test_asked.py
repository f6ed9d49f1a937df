"""What the model itself is asked about a call: new sizes, idle arguments, samples alone, and dtypes of queries."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from mccompile.capture.errors import CallError
from mccompile.capture.guards import AT_EACH_SIZE
from mccompile.capture.part import Additive, Part, Shared, Stream
from mccompile.runtime import masks
from mccompile.runtime import new_sizes as module
from mccompile.runtime.idle import IdleArguments
from mccompile.runtime.masks import QueryDtypes, dtypes_of_queries
from mccompile.runtime.new_sizes import NewSizes, told_of
from mccompile.runtime.one_by_one import OneByOne, joined

aten = torch.ops.aten


class Double(nn.Module):
    """A model of two inputs that counts how often it is asked."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor, self.asked = factor, 0

    def forward(self, x: torch.Tensor, mode: str = "a", text: torch.Tensor | None = None) -> Any:
        self.asked += 1
        if x.size(0) > 8:
            raise RuntimeError("too many rows\nand more")
        return {"out": x * (self.factor if mode != "odd" else 5.0), "count": 3}


def captured(**more: Any) -> Any:
    """A graph that doubles `x`. mode: a constant of it."""

    def graph(x: torch.Tensor, mode: object, text: torch.Tensor) -> tuple[torch.Tensor]:
        return (x * 2,)

    module = fx.symbolic_trace(graph)
    example = {"x": 0, "mode": 0, "text": 0}
    spec = torch.utils._pytree.tree_structure(((), example))
    values = {
        "module": module, "constants": (("mode", "a"),), "guards": (), "in_spec": spec, "samples": (), "moving": (),
        "dtypes": (("x", "torch.float32"),), "each": (), "model_class": "Double", "inputs": ("x", "text"),
    }  # fmt: skip
    return SimpleNamespace(**{**values, **more})


@pytest.fixture(autouse=True)
def graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captured graph doubles what it is given first."""
    monkeypatch.setattr(module, "run_full", lambda captured, given: SimpleNamespace(outputs=(given[0] * 2.0, 3)))


def call(rows: int = 2, **more: Any) -> dict[str, Any]:
    return {"x": torch.arange(float(3 * rows)).view(rows, 3), "text": torch.ones(1, 2), **more}


def guarded(monkeypatch: pytest.MonkeyPatch, *broken: str, values: tuple[str, ...] = (), **more: Any) -> Any:
    """A captured model of which these guards are broken. values: those that are about what arguments hold."""
    monkeypatch.setattr(module, "broken", lambda guards, call: [g for g in guards if g in broken])
    monkeypatch.setattr(module, "of_values", lambda guard: guard in values)
    monkeypatch.setattr(module, "arguments_of", lambda guard: ("text",))
    return captured(guards=(*broken, *values, "holds"), **more)


def test_a_call_within_the_guards_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Double()
    sizes = NewSizes(model, guarded(monkeypatch))
    assert not sizes.knows(call())
    sizes.check(call())
    assert (sizes.knows(call()), sizes.knows(call(3)), model.asked) == (True, False, 0)
    assert not sizes.knows(call(x=torch.zeros(2, 3, dtype=torch.float16)))
    assert not sizes.knows(call(text=3))


@pytest.mark.parametrize("guard", ["x.size(0) != 1", AT_EACH_SIZE])
def test_the_model_is_asked_where_a_guard_is_broken(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Double()
    sizes = NewSizes(model, guarded(monkeypatch, guard))
    sizes.check(call())
    assert (model.asked, sizes.knows(call())) == (1, True)
    other = NewSizes(Double(3.0), guarded(monkeypatch, guard))
    told = f"not {guard}" if guard != AT_EACH_SIZE else "something else at this size than the graph"
    with pytest.raises(CallError) as refused:
        other.check(call())
    assert told in str(refused.value)
    assert "Double.forward at inputs" in str(refused.value)
    assert "with a call of this size as one of the two" in str(refused.value)
    assert not other.knows(call())


def test_another_kind_of_numbers_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timestep of whole numbers in place of fractions; another precision is no such matter."""
    model = Double()
    sizes = NewSizes(model, guarded(monkeypatch))
    sizes.check(call(x=torch.ones(2, 3, dtype=torch.int64)))
    assert model.asked == 1
    sizes.check(call(x=torch.ones(2, 3, dtype=torch.float16)))
    assert model.asked == 1
    whole = NewSizes(model, guarded(monkeypatch, dtypes=(("x", "torch.int64"),)))
    whole.check(call(x=torch.ones(2, 3, dtype=torch.int64)))
    assert model.asked == 1
    whole.check(call())
    assert model.asked == 2
    with pytest.raises(CallError, match=r"`x` of torch\.int64"):
        NewSizes(Double(3.0), guarded(monkeypatch, dtypes=(("x", "torch.int64"),))).check(call())


def test_results_of_other_numbers_of_tensors_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = NewSizes(Double(), guarded(monkeypatch, "guard"))
    monkeypatch.setattr(module, "run_full", lambda captured, given: SimpleNamespace(outputs=(given[0] * 2, given[0])))
    with pytest.raises(CallError):
        sizes.check(call())


def test_what_arguments_hold_is_looked_at_again_when_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    made = guarded(monkeypatch, values=("text.any()",))
    sizes, given = NewSizes(Double(), made), call()
    sizes.check(given)
    assert sizes.knows(given)
    assert sizes.knows(call())  # equal values
    assert not sizes.knows(call(text=torch.zeros(1, 2)))
    assert sizes.knows(call(x=torch.zeros(2, 3)))
    given["text"].add_(1)
    assert not sizes.knows(given)
    sizes.check(call())
    sizes.forget()
    assert not sizes.knows(call())
    for told, why in (("not text.any()", "hold: text.any()"), ("text.all()", "hold: not text.all()")):
        other = NewSizes(Double(), guarded(monkeypatch, told, values=(told,)))
        with pytest.raises(CallError) as refused:
            other.check(call())
        assert why in str(refused.value)


def test_samples_that_are_run_alone_are_compared_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Double()
    sizes, whole = NewSizes(model, guarded(monkeypatch, "guard")), call()
    parts = [{"x": whole["x"][i : i + 1], "text": whole["text"]} for i in range(2)]
    sizes.check(whole, parts)
    assert model.asked == 1  # not about the guard too: each sample runs at the size that was captured
    sizes.check(call(), [call()])
    assert model.asked == 2  # about the guard
    with pytest.raises(CallError, match="something else for each sample alone"):
        NewSizes(Double(3.0), guarded(monkeypatch)).check(whole, parts)


def test_what_samples_share_is_repeated_where_the_model_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = guarded(monkeypatch, "guard", samples=("x", "text"), moving=("x",))
    model = Double()
    sizes = NewSizes(model, made)
    sizes.check(call())
    assert model.asked == 1
    assert sizes.taken(call())["text"].shape == (2, 2)
    one = call()
    assert sizes.taken(one)["text"] is sizes.taken(one)["text"]
    before = sizes.taken(one)["text"]
    sizes.forget()
    assert sizes.taken(one)["text"] is not before
    with pytest.raises(CallError, match="where `text` is repeated for each of 2 samples"):
        NewSizes(Double(3.0), made).check(call())


def test_what_does_not_run_says_so_with_the_first_line_of_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = NewSizes(Double(), guarded(monkeypatch, "guard"))
    with pytest.raises(CallError) as refused:
        sizes.check(call(9))
    assert "the model itself does not run at this size: too many rows" in str(refused.value)
    assert "and more" not in str(refused.value)
    assert "call it with a size that it takes" in str(refused.value)

    def fails(*_: object) -> None:
        raise RuntimeError("no such view")

    monkeypatch.setattr(module, "run_full", fails)
    with pytest.raises(CallError, match="the captured graph does not run at this size: no such view"):
        sizes.check(call())
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), told_of("it", Double(), {}):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")
    with pytest.raises(KeyError), told_of("it", Double(), {}):
        raise KeyError("another cause")


def test_arguments_that_change_nothing_are_asked_about_once() -> None:
    model = Double()
    idle = IdleArguments(model, captured())
    x = torch.ones(1)
    assert idle.without({"x": x, "mode": "a"}) is None
    assert model.asked == 0
    assert idle.without({"x": x, "mode": "b"}) == {"x": x, "mode": "a"}
    assert idle.without({"x": x + 1, "mode": "b"}) is not None
    assert model.asked == 2
    assert idle.without({"x": x, "mode": "odd"}) is None
    assert idle.without({"x": x, "mode": "odd"}) is None
    assert model.asked == 4
    assert idle.without({"x": 3}) is None  # it varies: nothing was recorded of it
    assert idle.without({"x": x, "mode": torch.ones(1)}) is None
    assert model.asked == 4
    idle.forget()
    idle.without({"x": x, "mode": "b"})
    assert model.asked == 6


def test_a_model_that_writes_into_its_arguments_is_asked_with_copies() -> None:
    class Writes(Double):
        def forward(self, x: torch.Tensor, mode: str = "a", text: torch.Tensor | None = None) -> Any:
            return x.add_(1), mode == "c"

    x = torch.zeros(2)
    idle = IdleArguments(Writes(), captured())
    assert idle.without({"x": x, "mode": "b"}) is not None
    assert idle.without({"x": x, "mode": "c"}) is None  # a result that is no tensor is another
    assert x.tolist() == [0, 0]


def test_each_sample_is_taken_out_once() -> None:
    made = OneByOne(captured(each=("x", "text")))
    given = call(2, text=torch.ones(1, 2), steps=4)
    one, two = made.parts(given)
    assert (one["x"].tolist(), two["x"].tolist()) == ([[0, 1, 2]], [[3, 4, 5]])
    assert (one["text"] is given["text"], one["steps"]) == (True, 4)
    assert made.parts(given)[1]["x"] is two["x"]
    given["x"].add_(1)
    assert made.parts(given)[1]["x"].tolist() == [[4, 5, 6]]
    alone = call(1)
    assert made.parts(alone)[0] is alone
    made.forget()
    assert made.parts(given)[1]["x"] is not two["x"]
    with pytest.raises(CallError, match="`x` has 2, `text` has 3 samples"):
        made.parts(call(2, text=torch.ones(3, 2)))
    with torch.inference_mode():
        fresh = call(2)
        assert made.parts(fresh)[0]["x"] is not made.parts(fresh)[0]["x"]


def test_outputs_of_samples_are_joined() -> None:
    one, two = (torch.ones(1), 3, None), (torch.zeros(1), 3, None)
    assert joined([one]) == one
    first, number, nothing = joined([one, two])
    assert isinstance(first, torch.Tensor)
    assert (first.tolist(), number, nothing) == ([1, 0], 3, None)


def attending(*queries: str) -> Part:
    """A block whose attentions have these streams as queries, all under one mask but the last."""
    made = fx.Graph()
    streams = {name: made.placeholder(name) for name in dict.fromkeys(queries)}
    mask, bias, _ = (made.placeholder(name) for name in ("mask", "bias", "number"))
    whole = made.call_function(aten.unsqueeze.default, (made.call_function(aten.add.Tensor, (mask, bias)), 0))
    under: list[tuple[Any, ...]] = [(whole,)] * (len(queries) - 1)
    attention = aten.scaled_dot_product_attention.default
    found = [
        made.call_function(attention, (streams[q],) * 3 + own) for q, own in zip(queries, [*under, ()], strict=True)
    ]
    weight = made.get_attr("weight")
    made.output((*found, made.call_function(aten.mul.Tensor, (found[0], weight))))
    takes = (*(Stream(name) for name in streams), Additive("mask"), Shared("bias"), Shared("number"))
    holder = nn.Module()
    holder.register_buffer("weight", torch.ones(1))
    return Part(fx.GraphModule(holder, made), takes, ())


def test_a_mask_is_added_in_the_dtype_of_the_queries_that_meet_it() -> None:
    """None where queries of several dtypes do. Attention without a mask tells nothing."""
    one, two = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4).half()
    more = [torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool), 3]
    assert dtypes_of_queries(attending("x", "y"), [one, two, *more]) == {"mask": torch.float32}
    assert dtypes_of_queries(attending("y", "x"), [two, one, *more]) == {"mask": torch.float16}
    assert dtypes_of_queries(attending("x", "y", "x"), [one, two, *more]) == {"mask": None}
    assert dtypes_of_queries(attending("x", "x"), [one, *more]) == {"mask": torch.float32}
    plain = attending("x", "x")
    unmasked = Part(plain.module, tuple(Stream(name) for name in ("x", "mask", "bias", "number")), ())
    assert dtypes_of_queries(unmasked, ["no tensor", None]) == {}  # its code is not run


def test_the_dtypes_of_a_kind_of_block_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    part, asked = attending("x", "x"), list[Any]()
    x, mask = torch.ones(1, 1, 2, 4), torch.ones(1, 2, 2, dtype=torch.bool)
    sites = [SimpleNamespace(kind=0, at=0), SimpleNamespace(kind=0, at=1)]
    made = QueryDtypes(SimpleNamespace(blocks=sites, kinds=[None]), [part])  # type: ignore[arg-type]

    class Bound:
        def arguments(self, resolve: Any) -> list[Any]:
            asked.append(1)
            return [resolve(Stream("x0")), resolve(Additive("mask0")), resolve(Shared("bias0")), 3]

    monkeypatch.setattr(masks, "names_at", lambda kind, site: {Shared("mask"): f"mask{site.at}"})
    bound: Any = Bound()
    given = {"mask0": mask, "bias0": torch.zeros(1, 2, 2, dtype=torch.bool)}
    assert made.of(0, bound, {"x0": x}, given) == {"mask0": torch.float32}
    assert made.of(1, bound, {}, {}) == {"mask1": torch.float32}
    assert asked == [1]
