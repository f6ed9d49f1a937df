"""The pipeline with its own transformer under torch.compile: the baselines that need no cache and no capture.

`torch.compile` of the whole model and of each block (regional compilation) are what a user of diffusers has at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import nn

from mccompile.generate.compare import Announce
from mccompile.generate.run import Generation, generate
from mccompile.studio.bench import generations

EAGER: Final = "diffusers, eager"
WHOLE: Final = "diffusers, torch.compile"
REGIONAL: Final = "diffusers, blocks compiled"
Forward = Callable[..., object]


def compiled_forwards(parts: Sequence[nn.Module]) -> list[Forward]:
    """The forward of each part under torch.compile, at the sizes that it meets."""
    return [torch.compile(part.forward, dynamic=False) for part in parts]


@contextlib.contextmanager
def replaced(parts: Sequence[nn.Module], forwards: Sequence[Forward]) -> Iterator[None]:
    """The parts with these forwards inside, and with their own again after that. No forwards: nothing is replaced."""
    if forwards:
        for part, forward in zip(parts, forwards, strict=True):
            part.forward = forward
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop("forward", None)


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The modules that the transformer holds in lists: its blocks."""
    return [block for part in transformer.children() if isinstance(part, nn.ModuleList) for block in part]


def baselines(job: generations.GenerationJob, announce: Announce, compiled: bool) -> dict[str, generations.Run]:
    """Runs of the stock pipeline: eager, and with `compiled` also as a whole and block by block under torch.compile."""
    transformer: nn.Module = job.pipe.transformer

    def way(name: str, parts: Sequence[nn.Module]) -> generations.Run:
        forwards = compiled_forwards(parts)

        def run(stop: int | None) -> Generation:
            with replaced(parts, forwards):
                return generate(job.pipe, job.call, 0, announce(name), stop)

        return run

    ways: dict[str, list[nn.Module]] = {EAGER: []}
    if compiled:
        ways |= {WHOLE: [transformer], REGIONAL: blocks_of(transformer)}
    return {name: way(name, parts) for name, parts in ways.items()}
