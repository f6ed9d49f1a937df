"""Whether what a store keeps is of the call that is about to use it: the step before, the same size, the same prompt.

Otherwise it counts as nothing: the call is computed afresh, and the trace says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from mccompile.capture.types import CapturedModel
from mccompile.lowering.locate import latent_inputs, timestep_of
from mccompile.policy.bind import BoundPolicy
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import Moment
from mccompile.runtime.finite import NOT_FINITE
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, Held, Made, Memory


def prompt_inputs(captured: CapturedModel) -> tuple[str, ...]:
    """The user inputs that hold for a whole request, by what is made of them: neither latents nor timestep reach it."""
    changing = latent_inputs(captured) | {timestep_of(captured)}
    entry = [p for p in captured.streams if p.name in captured.entry and p.rows != "video"]
    lasting = [p.depends - changing for p in entry]
    lasting += [p.depends for p in captured.shared if p.token_axis is None and not p.depends & changing]
    found = frozenset().union(*lasting)
    return tuple(name for name in captured.inputs if name in found)


def made_of(captured: CapturedModel, prompt: tuple[str, ...], layout: Layout, inputs: Mapping[str, Value]) -> Made:
    """What the kept tensors of a call are made of. prompt: see `prompt_inputs`."""
    size: tuple[int, ...] = (layout.batch, layout.frames, layout.positions)
    if captured.grid is not None:
        size = (layout.batch, layout.frames, *captured.grid.of_call(inputs)[1:])
    size += (layout.behind,) if layout.behind else ()
    given = {name: inputs[name] for name in prompt}
    return Made(size, {n: Held.of(v) for n, v in given.items() if isinstance(v, torch.Tensor)})


def renew(store: BranchStore, made: Made, moment: Moment, bounds: Mapping[str, BoundPolicy]) -> BranchStore:
    """The store for a call: `store` itself, without what is not of this call's request, size, prompt and last step."""
    before = store.made
    if before is not None and before.size != made.size:
        store = BranchStore.empty(bounds, made.size[0], moment.total)
        store.lose("another size")
    elif before is not None and not made.same_prompt(before):
        store.memory = Memory()
        store.lose("another prompt")
    elif store.row >= 0 and moment.row != store.row + 1:
        store.lose(f"last called in row {store.row}", but_clean=True)
    store.made = made
    for time in moment.chunks:
        if time.state == "active" and time.copy_of is None:
            for group, course in store.courses.items():
                course.history.follow(time, bounds[group], moment.grid)
    return store


def forget_odd(store: BranchStore, actions: Iterable[Sequence[Sequence[Action]]]) -> bool:
    """Whether what the last call has left is dropped: its results were not finite, and this call would use them.

    Only then does the host wait for that call. A call that computes everything overwrites what was left.
    actions: of each group of regions.
    """
    found = (a for of_group in actions for of_sample in of_group for a in of_sample)
    if all(a.kind == "compute" for a in found) or store.is_finite():
        return False
    store.drop(NOT_FINITE)
    return True
