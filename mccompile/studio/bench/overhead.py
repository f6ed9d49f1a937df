"""`bench overhead`: the policy that computes everything against the same model under torch.compile."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from mccompile.backend.inductor import Progress
from mccompile.pipelines.probe import ExampleCall
from mccompile.studio.bench.ladder_steps import Conditions, settings
from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.rig import VANILLA, StepWay, compile_ways, repeaters
from mccompile.studio.bench.subjects import Subject, all_active
from mccompile.studio.bench.timing import interleaved, ratio

BASE, OURS, EAGER = "torch.compile(model)", "policy compute", "model, eager"
COLUMNS = (
    Column("name", "step"), Column("count", "tokens", "d"), Column("ms", "ms", ".1f"),
    Column("overhead", "over torch.compile", "+.1%"),
)  # fmt: skip
PLOT = Plot("count", "ms", "tokens", "ms per step", "name", log_x=True, log_y=True)


def report(subject: Subject, chunks: Sequence[int], under: Conditions, progress: Progress | None = None) -> Report:
    """A step (two calls) of videos of so many chunks, three ways each; graphs of ours are compiled for all of them."""
    model = subject.model(under.device, under.dtype)
    prepared = subject.prepared(model)
    way = StepWay(OURS, VANILLA)
    backend = compile_ways(prepared, (way,), under.backend, progress)
    rows: list[Row] = []
    for count in chunks:
        sized = dataclasses.replace(subject, chunks=count)
        call = sized.call(under.device, under.dtype)
        ours = repeaters(model, prepared, (way,), call, all_active(count), backend)[OURS]
        plain = model if under.backend == "eager" else torch.compile(model, dynamic=False)
        ways = {BASE: stepper(plain, ours.calls), OURS: ours.step, EAGER: stepper(model, ours.calls)}
        seconds = interleaved(ways, under.rounds, under.clock)
        rows += [
            {
                "name": name, "count": sized.tokens, "seconds": list(found), "ms": 1e3 * statistics.median(found),
                "overhead": 1 / ratio(seconds[BASE], found) - 1,
            }
            for name, found in seconds.items()
        ]  # fmt: skip
        torch.compiler.reset()
    title = f"The policy that computes everything, {subject.layers} layers of width {subject.dim}"
    return Report("overhead", title, COLUMNS, tuple(rows), PLOT, settings(subject, under))


def stepper(model: nn.Module | Callable[..., object], calls: Mapping[str, ExampleCall]) -> Callable[[], object]:
    """One step of the bare model: a call per guidance branch on the same new latents."""

    @torch.no_grad()
    def step() -> None:
        latents = next(iter(calls.values()))["hidden_states"]
        assert isinstance(latents, torch.Tensor)
        fresh = latents.clone()
        for call in calls.values():
            model(**call | {"hidden_states": fresh})

    return step
