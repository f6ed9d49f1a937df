"""The text of a lowered model runs, and computes what the graphs compute (law 7 for the last stage)."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import fx

from mccompile.capture.part import attribute
from mccompile.capture.types import Refusal
from mccompile.language.load import load_policy
from mccompile.lowering import emit
from mccompile.lowering.lower import lower
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import bind
from mccompile.runtime.engine import Engine
from mccompile.runtime.exercise import exercise
from tests.generate.conftest import Small


class Weights:
    """Tensors of a module by qualified name."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    def __getitem__(self, name: str) -> object:
        return attribute(self.module, name)


def written(lowered: LoweredModel) -> dict[str, object]:
    """The functions of the emitted text."""
    names: dict[str, object] = {}
    exec(compile(emit.emit(lowered), "lowered.py", "exec"), names)
    return names


def same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["motioncache", "compute"])
def test_the_text_computes_what_the_graphs_compute(policy: str, small: Small) -> None:
    ir = load_policy(policy)
    lowered = lower(small.captured.model, ir, small.captured.prefixes, fold=policy != "motioncache")
    functions, compared = written(lowered), set()
    modules = {id(f[1]): f for f in emit.graphs(lowered)}

    def comparing(module: fx.GraphModule, role: str):  # type: ignore[no-untyped-def]
        if id(module) not in modules:
            return module.forward
        name, _, _ = modules[id(module)]

        def run(*arguments: object) -> tuple[object, ...]:
            copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
            weights = {"weights": Weights(module)} if emit.function(name, "", module).weights else {}
            found = functions[name](*copies, **weights)  # type: ignore[operator]
            results = module.forward(*arguments)
            assert len(found) == len(results)
            assert all(map(same, found, results))
            assert all(map(same, copies, arguments))  # buffers were written alike
            compared.add(name)
            return results

        return run

    exercise(Engine(lowered, comparing), bind(ir, {}), small.captured.calls)
    block = "block0_plain" if policy == "compute" else "block0_partial"
    expected = {block} | ({"decide"} if any(lowered.decides.values()) else set())
    expected |= {"observe"} if lowered.observe else set()
    assert expected <= compared
    inputs = list(small.captured.calls[0].values())
    with torch.no_grad():
        prelude = functions["prelude"](*inputs, weights=Weights(lowered.captured.prelude.module))  # type: ignore[operator]
        assert all(map(same, prelude, lowered.captured.prelude(*inputs)))


def test_the_text_is_the_same_every_time(small: Small) -> None:
    ir = load_policy("motioncache")
    texts = {emit.emit(lower(small.captured.model, ir, small.captured.prefixes)) for _ in range(2)}
    assert len(texts) == 1
    (text,) = texts
    assert text.count("def block0_partial(") == text.count("def decide(") == text.count("def observe(") == 1
    assert "blocks 0..5: decided by the policy, keep residual" in text
    assert "known before the first frame: modulation" in text
    assert not re.search(r'^ +\w+ = weights\["[^"]*"\]$', text, re.MULTILINE)  # they are named where they are used


def test_refusals_are_in_the_text(small: Small) -> None:
    lowered = lower(small.captured.model, load_policy("exact"), small.captured.prefixes)
    refused = dataclasses.replace(lowered, refusals=(Refusal("conv_1", "mixes tokens"),))
    assert "refused conv_1: mixes tokens" in emit.emit(refused)
