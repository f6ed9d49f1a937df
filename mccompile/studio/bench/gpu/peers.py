"""Last stage: what the caches of diffusers and cache-dit take for a step of the 1.3B transformer that they reuse."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import torch

from mccompile.studio.bench.generations import FAILURES
from mccompile.studio.bench.gpu.machine import Machine
from mccompile.studio.bench.gpu.telling import TellRow
from mccompile.studio.bench.peer_ways import SKYREELS, Peer, Setup, heard, register_blocks
from mccompile.studio.bench.timing import CallTimer

NAMES = ("FirstBlockCache 0.2", "PyramidAttentionBroadcast 2, 3", "TaylorSeer 3", "cache-dit DBCache 0.3")
BRANCHES = ("cond", "uncond")


def chosen() -> Sequence[Peer]:
    """The peers that are installed here, one setting of each method."""
    there = importlib.util.find_spec("cache_dit") is not None
    return [p for p in SKYREELS if p.name in NAMES and (there or not p.name.startswith("cache-dit"))]


def peers(machine: Machine, tell: TellRow) -> None:
    """A row per peer: the seconds of each of its first steps, over latents that change little from step to step.

    The blocks are compiled. A peer that does not run has its error.
    """
    made = machine.make(machine.scale.subject, False)
    pipe = SimpleNamespace(transformer=made.model, _current_timestep=500, config=SimpleNamespace())
    register_blocks(pipe)
    setup = Setup(pipe, machine.scale.peer_steps, ())
    if machine.backend != "eager":
        for block in made.model.blocks:
            block.compile(dynamic=False)
    tell({"name": "the stock transformer", "seconds": _steps(machine, made.model, made.call)})
    for peer in chosen():
        with heard() as lines:
            try:
                peer.enable(setup)
                tell({"name": peer.name, "seconds": _steps(machine, made.model, made.call), "said": lines[:1]})
            except FAILURES as error:
                tell({"name": peer.name, "error": f"{type(error).__name__}: {error}"[:300]})
            finally:
                peer.disable(pipe)


@torch.no_grad()
def _steps(machine: Machine, model: torch.nn.Module, call: dict[str, object]) -> list[float]:
    clock = CallTimer(machine.device)
    latents = call["hidden_states"]
    assert isinstance(latents, torch.Tensor)

    def step(number: int) -> None:
        for branch in BRANCHES:
            with model.cache_context(branch):
                model(**{**call, "hidden_states": latents * (1.0 + 0.001 * number)})

    return [clock.seconds(partial(step, n)) for n in range(machine.scale.peer_steps)]
