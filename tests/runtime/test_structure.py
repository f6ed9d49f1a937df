"""The state of a model by itself: which changes a captured graph follows, and which are refused with their name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from mccompile.capture.own import own_weights
from mccompile.runtime.errors import ModelChanged, ModelTreated
from mccompile.runtime.state import ModelState, built_alike, check_untreated, uncompiled, values_of


class Processor:
    """What runs in the place of a module's own code."""


class Layer(nn.Linear):
    """It has a setting and an adapter."""

    def __init__(self, size: int = 2) -> None:
        super().__init__(size, size)
        self.scale, self.modes, self.scaling, self.processor = 1.0, ["a"], {"one": 1.0}, Processor()


def model(tied: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(Layer(), Layer())
    made.register_buffer("mean", torch.zeros(2))
    made.tables = [torch.ones(1)]
    if tied:
        made[1].weight = made[0].weight
    return made


def graph_of(made: nn.Module) -> fx.GraphModule:
    """It reads all weights, which lie where the model's do."""
    graph = fx.Graph()
    names = [*dict(made.named_parameters(remove_duplicate=False)), "mean"]
    graph.output(tuple(graph.get_attr(name) for name in names))
    found = fx.GraphModule(made, graph)
    own_weights(found)
    return found


def read(graph: fx.GraphModule) -> list[list[Any]]:
    return [tensor.detach().flatten().tolist() for tensor in graph()]


def held(made: nn.Module) -> list[list[Any]]:
    weights = [*dict(made.named_parameters(remove_duplicate=False)).values(), made.mean]
    return [tensor.detach().flatten().tolist() for tensor in weights]


FOLLOWED: dict[str, Callable[[Any], object]] = {
    "in place": lambda m: m[0].weight.add_(1.0),
    "other values": lambda m: setattr(m[1].weight, "data", torch.ones(2, 2)),
    "another parameter": lambda m: setattr(m[1], "bias", nn.Parameter(torch.ones(2))),
    "a buffer": lambda m: setattr(m, "mean", torch.ones(2)),
    "loaded": lambda m: m.load_state_dict({n: torch.full_like(v, 3.0) for n, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("change", FOLLOWED)
def test_other_values_are_followed_and_told_once(change: str) -> None:
    made = model()
    graph = graph_of(made)
    state = ModelState(made, graph)
    assert not state.changed()
    with torch.no_grad():
        FOLLOWED[change](made)
    assert state.changed()
    assert not state.changed()
    assert read(graph) == held(made)


def test_a_tensor_that_no_graph_reads_is_looked_at_too() -> None:
    made = model()
    state = ModelState(made, graph_of(made))
    made.tables[0].add_(1)
    assert state.changed()
    made.tables[0] = torch.full((1,), 2.0)
    assert state.changed()
    assert not state.changed()


def split(made: Any) -> None:
    """As diffusers does it: it notes that in the model, and changes its modules."""
    made._parallel_config, made[0].scale = 1, 2.0


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "dtype": (lambda m: m.double(), "weight `0.weight` has another dtype: torch.float64"),
    "shape": (lambda m: setattr(m[1], "bias", nn.Parameter(torch.ones(3))), "weight `1.bias` has another shape"),
    "device": (lambda m: setattr(m, "mean", torch.zeros(2, device="meta")), "weight `mean` has another device: meta"),
    "order": (lambda m: setattr(m[0].weight, "data", torch.ones(2, 2).t()[:, :].t().T), "another order in memory"),
    "kind": (lambda m: setattr(m, "mean", torch.ones(2).as_subclass(Odd)), "weight `mean` is a Odd"),
    "weight gone": (lambda m: setattr(m[0], "bias", None), "weight `0.bias` is gone"),
    "added": (lambda m: m.append(Layer()), "module `2` was added"),
    "gone": (lambda m: m.pop(1), "module `1` is gone"),
    "type": (lambda m: setattr(m, "1", nn.Linear(2, 2)), "module `1` has other type"),
    "hooks": (lambda m: m[0].register_forward_hook(print), "module `0` has other hooks"),
    "hooks before": (lambda m: m.register_forward_pre_hook(print), "the model has other hooks"),
    "forward": (lambda m: setattr(m[1], "forward", print), "module `1` has other forward"),
    "processor": (lambda m: setattr(m[1], "processor", Processor()), "module `1` has other processor"),
    "setting": (lambda m: setattr(m[0], "scale", 2.0), r"module `0` has other settings \(`scale`\)"),
    "settings": (lambda m: vars(m[0]).update(modes=["a", "b"], more=1), r"other settings \(`modes`, `more`\)"),
    "adapter": (lambda m: m[1].scaling.update(one=2.0), r"module `1` has other adapters \(`scaling`\)"),
    "split": (split, "split over processes"),
}  # fmt: skip


class Odd(torch.Tensor):
    """It stands for other tensors."""


@pytest.mark.parametrize("change", REFUSED)
def test_what_a_graph_cannot_follow_is_refused_by_its_name(change: str) -> None:
    made = model()
    before = graph_of(made)
    state = ModelState(made, before)
    values = read(before)
    REFUSED[change][0](made)
    with pytest.raises(ModelChanged, match=REFUSED[change][1]):
        state.changed()
    assert read(before) == values  # all of them are followed, or none


def test_scales_of_adapters_that_are_inputs_may_change() -> None:
    made = model()
    state = ModelState(made, graph_of(made), scaled=("1",))
    made[1].scaling.update(one=2.0)
    assert not state.changed()
    made[1].merged_adapters = ["one"]
    with pytest.raises(ModelChanged, match=r"module `1` has other adapters \(`merged_adapters`\)"):
        state.changed()


def test_a_forward_that_hooks_leave_behind_is_that_of_the_class() -> None:
    made = model()
    state = ModelState(made, graph_of(made))
    made[0].forward = made[0].forward
    assert not state.changed()
    check_untreated(made)
    made[0].forward = made[1].forward  # of another instance
    with pytest.raises(ModelChanged, match="module `0` has other forward"):
        state.changed()


def test_tied_weights_are_followed_together_and_refused_apart() -> None:
    made = model(tied=True)
    graph = graph_of(made)
    state = ModelState(made, graph)
    made[0].weight = made[1].weight = nn.Parameter(torch.ones(2, 2))
    assert state.changed()
    assert read(graph) == held(made)
    made[1].weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ModelChanged, match=r"weights `0.weight`, `1.weight` were one tensor, and are no longer"):
        state.changed()


def test_a_capture_of_another_model_serves_one_of_equal_values() -> None:
    graph, made = graph_of(model()), model()
    state = ModelState(made, graph)
    with torch.no_grad():
        made[0].weight.add_(1)
    assert read(graph) == held(made)  # from the first look on
    assert state.changed()
    assert read(graph) == held(made)
    for odd, why in ((model().double(), "is not that of the captured model"), (made, "is not that of the captured")):
        with pytest.raises(ModelChanged, match=f"weight `0.weight` {why}"):
            ModelState(odd, graph_of(model()))


def test_models_that_are_built_alike_differ_in_values_at_most() -> None:
    other = model()
    with torch.no_grad():
        other[0].weight.add_(1)
    assert built_alike(model(), other)
    for change in ("dtype", "added", "type", "hooks", "forward", "setting", "adapter", "weight gone"):
        odd = model()
        REFUSED[change][0](odd)
        assert not built_alike(model(), odd), change
    again = model()
    again[0].processor = Processor()
    assert built_alike(model(), again)
    again[0].processor = print
    assert not built_alike(model(), again)
    named = model()
    named.config = {"layers": 2}
    assert not built_alike(model(), named)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("hooks", "module `0` has hooks"), ("hooks before", "it has hooks"),
        ("forward", "module `1` has a forward of its own"), ("split", "it has tokens or weights split over processes"),
    ],
)  # fmt: skip
def test_a_treated_model_is_refused(change: str, why: str) -> None:
    made = model()
    check_untreated(made)
    REFUSED[change][0](made)
    with pytest.raises(ModelTreated, match=why):
        check_untreated(made)


def test_hooks_of_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ModelTreated, match="every module has hooks"):
            check_untreated(model())
    finally:
        handle.remove()
    check_untreated(model())


def test_what_torch_compile_has_put_into_modules_is_put_aside_for_a_while() -> None:
    made = model()
    made[1]._compiled_call_impl = called = lambda *_: None
    with uncompiled(made):
        assert made[1]._compiled_call_impl is None
        assert "_compiled_call_impl" not in vars(made[0])
    assert made[1]._compiled_call_impl is called


def test_every_tensor_of_a_model_has_its_value_by_each_of_its_names() -> None:
    made = model(tied=True)
    made[0].register_buffer("own", made.mean)
    made[0].held = {"a": torch.ones(2)}
    found = values_of(made)
    assert found["0.weight"] == found["1.weight"]
    assert found["mean"] == found["0.own"]
    assert {"tables[0]", "0.held['a']"} <= set(found)


def test_models_of_another_configuration_are_not_built_alike() -> None:
    one, other = model(), model()
    one.config, other.config = {"layers": 1}, {"layers": 1}
    assert built_alike(one, other)
    other.config = {"layers": 2}
    assert not built_alike(one, other)
