"""What AOTInductor does not take runs under torch.compile, with its reason told, and never compiles again."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import fx, nn
from torch._dynamo.utils import counters

from mccompile.backend import inductor as inductor_module
from mccompile.backend.aot import CannotCompile
from mccompile.backend.inductor import inductor
from mccompile.backend.jit import compile_in_place
from mccompile.backend.package_errors import NotCompiled
from mccompile.backend.record import Recorder, RoleRecording
from mccompile.backend.role import Role
from tests.backend.conftest import Tiny

ROLE = Role("block", 3)


def scaled(bad: bool = False) -> fx.GraphModule:
    """(x [n, 8], buffer [L, 8], rows [n], bound) -> x + attribute, written to the buffer's rows too."""
    graph = fx.Graph()
    x, buffer, rows = map(graph.placeholder, ("x", "buffer", "rows"))
    y = graph.call_function(torch.ops.aten.add.Tensor, (x, graph.get_attr("shift")))
    graph.call_function(torch.ops.aten.index_copy_.default, (buffer, 0, rows, y))
    if bad:
        total = graph.call_function(torch.ops.aten.sum.default, (x,))
        y = graph.call_function(torch.ops.aten.add.Tensor, (y, graph.call_method("tolist", (total,))))
    graph.output((y,))
    root = nn.Module()
    root.shift = 1.5  # no tensor: AOTInductor's graphs have tensors only
    return fx.GraphModule(root, graph)


def arguments(n: int, length: int) -> tuple[torch.Tensor, ...]:
    return torch.ones(n, 8), torch.zeros(length, 8), torch.arange(n)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Two calls of the graph; torch.compile traces and guards as ever, but calls no C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    found = Recorder()
    run = found(scaled(), ROLE)
    for n, length in ((3, 11), (5, 13)):
        run(*arguments(n, length))
    return found


@torch.no_grad()  # as CompiledModel.forward runs
def test_the_fallback_has_its_reason_and_is_not_compiled_again(recorder: Recorder, tiny: Tiny) -> None:
    backend = inductor(recorder, tiny.lowered, workers=0)
    assert [(r.site, "`shift` is no tensor" in r.reason) for r in backend.refusals] == [("graph block3:plain", True)]
    run = backend(scaled(), ROLE)
    compiled = dict(counters["stats"])
    for n, length in ((4, 9), (20, 31), (2, 7)):
        here, there = arguments(n, length), arguments(n, length)
        assert torch.equal(run(*here)[0], scaled()(*there)[0])  # type: ignore[arg-type]
        assert torch.equal(here[1], there[1])
    assert dict(counters["stats"]) == compiled
    assert compiled["unique_graphs"] == 1


def test_what_torch_compile_does_not_take_either_is_an_error(recorder: Recorder) -> None:
    (recording,) = recorder.recordings.values()
    with pytest.raises(NotCompiled, match="block3:plain") as caught:
        compile_in_place(RoleRecording(ROLE, scaled(bad=True), recording.calls, recording.tensors))
    assert caught.value.code == "MC0802"


def test_a_compiler_that_fails_is_a_reason(tiny: Tiny, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CannotCompile("AOTInductor: CppCompileError: g++ not found")

    monkeypatch.setattr(inductor_module, "export_role", lambda recording: (None, None))
    monkeypatch.setattr(inductor_module, "compile_program", refuse)
    backend = inductor(recorder, tiny.lowered, workers=0)
    assert [r.reason for r in backend.refusals] == ["AOTInductor: CppCompileError: g++ not found"]


def test_small_graphs_and_constants_of_a_request_stay_eager(tiny: Tiny) -> None:
    recorder = Recorder()
    text, time = (Role("prelude", depends=frozenset({n})) for n in ("encoder_hidden_states", "timestep"))
    for role in (text, time, Role("gather")):
        graph = fx.Graph()
        x = graph.placeholder("x")
        for _ in range(30 if role == text else 3):
            x = graph.call_function(torch.ops.aten.relu.default, (x,))
        graph.output((x,))
        recorder(fx.GraphModule(nn.Module(), graph), role)(torch.ones(2))
    backend = inductor(recorder, tiny.lowered, workers=0)
    assert {r.role: (r.form, r.reason) for r in backend.roles.values()} == {
        text: ("eager", "computed once per request"),
        time: ("eager", "only 3 operators"),
        Role("gather"): ("eager", "only 3 operators"),
    }
    assert backend.refusals == ()
    assert backend.compiled_count == 0
