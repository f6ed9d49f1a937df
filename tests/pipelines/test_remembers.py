"""A forward that depends on earlier calls is refused: a graph would hold what one call did."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from mccompile import api
from mccompile.capture.errors import ExportError
from mccompile.runtime.called import CalledCode
from mccompile.runtime.errors import ModelChanged, ModelRemembers
from mccompile.runtime.remembers import check_remembers_nothing, runs_at
from mccompile.runtime.state import ModelState
from tests.pipelines.conftest import text, wan, wan_transformer

CALLS = 0
LISTED: list[int] = []
FACTOR = 1.0


class Cached(WanTransformer3DModel):
    """A step cache as others patch it into the class of a model: it counts in the class, and keeps the last output."""

    count = 0
    kept: torch.Tensor | None = None

    def forward(self, *args: object, **kwargs: object) -> object:
        Cached.count += 1
        if Cached.count > 9 and Cached.count % 2 and self.kept is not None:
            return (self.kept,)
        made = super().forward(*args, **kwargs)
        self.kept = made[0]
        return made


class Caching(WanTransformer3DModel):
    """Writes keys of this call into a cache that it is given, or how many there are into a dict (AnyFlow-FAR)."""

    def forward(self, *args: object, cache: torch.Tensor, flags: dict[str, int], **kwargs: object) -> object:
        (made,) = super().forward(*args, **kwargs, return_dict=False)
        if "count" in flags:
            flags["count"] = made.size(2)
        else:
            cache[:, : made.size(2)] = 1.0
        return (made,)


class Counting:
    """An attention processor that counts."""

    def __init__(self, own: Callable[..., torch.Tensor]) -> None:
        self.own, self.calls = own, 0

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        self.calls += 1
        return self.own(*args, **kwargs)


class State:
    """An object of a user's own."""

    def __init__(self) -> None:
        self.seen = 0
        self.scale = 1.0


class Model(nn.Module):
    """One linear layer. Each kind does something beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.state, self.tables, self.last = nn.Linear(2, 2), State(), dict[int, torch.Tensor](), (0, 0)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) * self.state.scale


class InGlobal(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global CALLS
        CALLS += 1
        return super().forward(x)


class InGlobalList(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        LISTED.append(1)
        return super().forward(x)


class InObject(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.seen += 1
        return super().forward(x)


class InBuffer(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(x.mean(0))
        return super().forward(x)


class InList(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = [*getattr(self, "kept", []), x][-3:]
        return super().forward(x) + len(self.kept)


class Noting(Model):
    """It makes a table of each size once, and notes the last size: both depend on the call alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) not in self.tables:
            self.tables[len(x)] = torch.ones(len(x), 1)
        self.last = (int(x.shape[0]), int(x.shape[1]))
        self.seen = x * 2
        return super().forward(x) * self.tables[len(x)]


class WithFactor(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * FACTOR


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    LISTED.clear()


REMEMBER = {
    InGlobal: r"another `tests\..*\.CALLS`", InGlobalList: r"another `tests\..*\.LISTED`",
    InObject: r"`state\.seen`", InBuffer: "`mean`", InList: r"`kept\[\d\]`",
}  # fmt: skip


@pytest.mark.parametrize("kind", REMEMBER)
def test_what_a_forward_carries_over_is_found(kind: type[Model]) -> None:
    with pytest.raises(ModelRemembers, match=REMEMBER[kind]) as caught:
        check_remembers_nothing(kind().requires_grad_(False), {"x": torch.ones(3, 2)})
    assert caught.value.diagnostics[0].code == "MC0615"


@pytest.mark.parametrize("kind", [Model, Noting, WithFactor])
def test_what_depends_on_the_call_alone_is_no_memory(kind: type[Model]) -> None:
    check_remembers_nothing(kind().requires_grad_(False), {"x": torch.ones(3, 2)})


class Settles(Model):
    """What it notes is complete after the second call."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = min(self.calls + 1, 2)
        return super().forward(x)


class OfLibrary:
    """A processor of diffusers, which counts."""

    __module__ = "diffusers.models.attention_processor"

    def __init__(self) -> None:
        self.seen = 0


class Processed(Model):
    def __init__(self) -> None:
        super().__init__()
        self.processor = OfLibrary()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.processor.seen += 1
        return super().forward(x)


def test_what_settles_at_the_second_call_is_no_memory() -> None:
    check_remembers_nothing(Settles().requires_grad_(False), {"x": torch.ones(3, 2)})
    with pytest.raises(ModelRemembers, match=r"`processor\.seen`"):
        check_remembers_nothing(Processed().requires_grad_(False), {"x": torch.ones(3, 2)})


def test_a_model_that_does_not_run_at_a_size_is_told_apart() -> None:
    assert runs_at(Model(), {"x": torch.ones(3, 2)}) is True
    assert runs_at(Model(), {"x": torch.ones(3, 5)}) is False


def test_a_cache_in_the_class_of_a_model_is_refused_by_compile() -> None:
    model = wan_transformer()
    model.__class__ = Cached
    with pytest.raises(ModelRemembers, match=r"`count`|`Cached\.count`"):
        api.prepare(wan(model=model), call=text())


def test_a_processor_that_counts_is_refused_by_compile() -> None:
    model = wan_transformer()
    attention = model.blocks[1].attn1
    attention.processor = Counting(attention.processor)
    with pytest.raises(ModelRemembers, match=r"`blocks\.1\.attn1\.processor\.calls`"):
        api.prepare(wan(model=model), call=text())


def test_values_that_the_code_reads_belong_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Globals of its module, and variables of the function that made its class."""
    model = WithFactor()
    code = CalledCode(model)
    assert not code.replaced()
    monkeypatch.setattr(f"{__name__}.FACTOR", 2.0)
    assert "FACTOR" in code.replaced()
    factors = [torch.ones(2)]

    class Around(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * factors[0]

    code = CalledCode(Around())
    factors[0] = torch.ones(2)
    assert not code.replaced(), "it has the same values"
    factors[0] = torch.zeros(2)
    assert "`" in code.replaced()
    assert "factors" in code.replaced()


def listed(model: Model) -> Callable[[], object]:
    model.listed = [nn.Linear(2, 2)]
    return lambda: setattr(model.listed[0].weight, "data", torch.ones(2, 2))


def exchanged(model: Model) -> Callable[[], object]:
    model.listed = [nn.Linear(2, 2)]
    return lambda: model.listed.__setitem__(0, nn.Linear(2, 2))


def in_table(model: Model) -> Callable[[], object]:
    model.tables[3] = torch.ones(3)
    return lambda: model.tables.__setitem__(3, torch.zeros(3))


def in_array(model: Model) -> Callable[[], object]:
    model.state.array = np.ones(3)
    return lambda: model.state.array.__setitem__(0, 2.0)


def in_object(model: Model) -> Callable[[], object]:
    model.state.inner = [SimpleNamespace(scale=1.0)]
    return lambda: setattr(model.state.inner[0], "scale", 2.0)


REACHED = {
    "weight of a module in a list": (listed, "`listed`"), "module in a list": (exchanged, "`listed`"),
    "tensor in a table": (in_table, "`tables`"), "array": (in_array, "`state.array`"),
    "object": (lambda m: lambda: setattr(m.state, "scale", 2.0), "`state.scale`"),
    "object in an object": (in_object, "`state.inner`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REACHED)
def test_values_in_containers_and_objects_belong_to_the_model(name: str) -> None:
    model = Model()
    make, words = REACHED[name]
    change = make(model)
    state = ModelState(model, torch.fx.GraphModule(model, torch.fx.Graph()))
    assert not state.changed()
    change()
    with pytest.raises(ModelChanged, match=re.escape(words)):
        state.changed()


def test_a_tensor_in_a_container_may_get_other_values_in_its_place() -> None:
    """The graphs read it where it is; what was derived of it is derived anew."""
    model = Model()
    model.tables[3] = torch.ones(3)
    state = ModelState(model, torch.fx.GraphModule(model, torch.fx.Graph()))
    model.tables[3].mul_(2)
    assert state.changed()
    assert not state.changed()


def test_parts_of_the_model_in_a_list_are_its_parts() -> None:
    """New values of a weight are followed, whichever list the module also stands in; a logger is no setting."""
    model = Model()
    model.parts, model.log = [model.one, model.one.weight], logging.getLogger("of a model")
    state = ModelState(model, torch.fx.GraphModule(model, torch.fx.Graph()))
    model.one.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    model.one.bias.data = torch.zeros(2)
    model.log.setLevel("ERROR")
    model.log.info("once")
    assert state.changed()
    assert not state.changed()


def caching(flags: dict[str, int]) -> api.Prepared:
    model = wan_transformer()
    model.__class__ = Caching
    calls = [
        {
            "hidden_states": torch.randn(1, 4, *size), "timestep": torch.tensor([500.0]), "flags": dict(flags),
            "encoder_hidden_states": torch.randn(1, 7, model.config.text_dim), "cache": torch.zeros(1, 30),
        }
        for size in ((4, 6, 14), (6, 10, 22))
    ]  # fmt: skip
    return api.prepare(model, probe=calls[0], second=calls[1])


def test_a_forward_that_writes_into_a_tensor_that_it_is_given_is_refused() -> None:
    """The code around the blocks runs more than once in a step; what blocks write is another matter."""
    with pytest.raises(ExportError, match="writes in place into its arguments, outside of its blocks"):
        caching({})


def test_numbers_that_a_forward_writes_are_results() -> None:
    """The example calls stay as they are (tests/capture/test_capture_arguments.py)."""
    assert [str(one) for one in caching({"count": 0}).model.written] == ["flags.count"]
