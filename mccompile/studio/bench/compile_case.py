"""One compile, or one start from a bundle, in this process: `python -m mccompile.studio.bench.compile_case CASE`.

CASE is a Case as JSON. The last line of standard output is the result of `measure` as JSON. Each case needs a process:
a second compile in one process would find the imports, caches and workers of the first.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn
from torch._inductor import config

from mccompile import api
from mccompile.bundles.bundle import load_bundle, save_bundle
from mccompile.generate.compare import Contender, compile_roles
from mccompile.language.load import load_policy
from mccompile.pipelines.probe import ExampleCall
from mccompile.runtime.clock import ChunkTime, Timeline
from mccompile.runtime.compiled import CompiledModel
from mccompile.studio.bench.subjects import Subject, grid
from mccompile.studio.bench.timing import TimeKind

What = Literal["block", "model", "bundle"]


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed, on a transformer of these sizes. bundle: where `model` leaves one, and `bundle` finds it."""

    what: What
    subject: Subject
    policy: str
    backend: str
    device: str
    dtype: str
    kind: TimeKind
    bundle: str = ""

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def of(text: str) -> Case:
        values = json.loads(text)
        return Case(**{**values, "subject": Subject(**values["subject"])})


SecondsByName = dict[str, float]
T = TypeVar("T")


@torch.no_grad()
def measure(case: Case) -> SecondsByName:
    """Seconds by name, their sum as `seconds`, and for a model how many `graphs` were compiled.

    block: torch.compile of the first block, its compile and first call. model: `capture`, `compile` and `first` call
    of the whole under the policy. bundle: `load` (read, checked, laid over the model) and `first` call.
    """
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    model = case.subject.model(device, dtype)
    call = case.subject.call(device, dtype)
    clock = _Stopwatch(case.kind)
    match case.what:
        case "block":
            taken: list[tuple[tuple[object, ...], dict[str, object]]] = []
            block = model.blocks[0]
            hook = nn.Module.register_forward_pre_hook(
                block, lambda _, args, kwargs: taken.append((args, kwargs)), with_kwargs=True
            )
            model(**call)
            hook.remove()
            args, kwargs = taken[0]
            clock.lap("first", lambda: torch.compile(block, backend=case.backend)(*args, **kwargs))
        case "model":
            prepared = clock.lap("capture", lambda: case.subject.prepared(model))
            policy = load_policy(case.policy)
            ways = (Contender(policy.name, policy, {}),)
            eager = case.backend == "eager"
            roles = clock.lap("compile", lambda: None if eager else compile_roles(prepared, ways, None))
            compiled = api.compile(model, policy, backend=roles or "eager", captured=prepared)
            clock.lap("first", lambda: _step(compiled, call, case.subject.chunks))
            if roles is not None:
                clock.found["graphs"] = roles.compiled_count
                save_bundle(Path(case.bundle), compiled, roles)
        case "bundle":
            compiled = clock.lap("load", lambda: load_bundle(Path(case.bundle)).attach(model))
            clock.lap("first", lambda: _step(compiled, call, case.subject.chunks))
    return {**clock.found, "seconds": sum(v for n, v in clock.found.items() if n != "graphs")}


def _step(compiled: CompiledModel, call: ExampleCall, chunks: int) -> None:
    """The first step of a request, all chunks active."""
    first = tuple(ChunkTime(c, "active", 0) for c in range(chunks))
    compiled.clock = Timeline("first", grid(1), (first,))
    compiled(**call)


class _Stopwatch:
    """Seconds by name: of the wall, or of the processor in this process and those that it waited for."""

    def __init__(self, kind: TimeKind) -> None:
        self.found: SecondsByName = {}
        self._now = time.perf_counter if kind == "wall" else _processor_time
        if kind == "cpu":
            config.compile_threads = 1  # torch's own worker processes are never waited for

    def lap(self, name: str, call: Callable[[], T]) -> T:
        begun = self._now()
        made = call()
        self.found[name] = self._now() - begun
        return made


def _processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Case.of(sys.argv[1]))) + "\n")
