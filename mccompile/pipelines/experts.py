"""Pipelines with two transformers that take turns: Wan 2.2 has one for the noisy steps and one for the others.

The pipeline says at which timestep the second one takes over: `boundary_ratio` of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mccompile.pipelines.errors import SecondTransformer
from mccompile.policy.phases import Grid
from mccompile.runtime.errors import UnknownStep
from mccompile.runtime.stand_in import SLOTS, ExpertSlot, slots_of, transformer_of, unwrapped

RATIO = "boundary_ratio"


def experts_of(pipe: object) -> tuple[ExpertSlot, ...]:
    """The places of the transformers that run the steps of a generation, in the order in which they do.

    Raises SecondTransformer (MC0713) where others of the kind would run beside them.
    """
    found, config = slots_of(pipe), _config(pipe)
    if len(found) > 1 and RATIO in config:
        found = found if config[RATIO] is not None else found[:1]  # Wan: without it, the first one runs all steps
    refuse_others(pipe, SLOTS if RATIO in config else found[:1])
    return found


def refuse_others(pipe: object, known: tuple[ExpertSlot, ...]) -> None:
    """Raises SecondTransformer (MC0713) where a pipeline has transformers of its kind outside of the places `known`."""
    own = [transformer_of(pipe, slot) for slot in known]
    kinds = {type(unwrapped(part)) for part in own if part is not None}
    parts = ((n, part) for n, part in vars(pipe).items() if isinstance(part, nn.Module) and n not in known)
    others = [n for n, part in parts if type(unwrapped(part)) in kinds and not any(part is o for o in own)]
    if others:
        raise SecondTransformer(type(pipe).__name__, ", ".join(others))


def rows_of(pipe: object, slot: ExpertSlot, timesteps: torch.Tensor) -> range:
    """The rows of the schedule that one of two transformers runs. Reads the timesteps.

    Raises UnknownStep (MC0604) where they take turns more than once.
    """
    ratio, trained = _config(pipe)[RATIO], pipe.scheduler.config.num_train_timesteps  # type: ignore[attr-defined]
    assert isinstance(ratio, float | int)
    first = [t >= ratio * trained for t in timesteps.tolist()]
    count = sum(first)
    if not all(first[:count]):
        raise UnknownStep(f"the timesteps cross the boundary of {RATIO} {ratio} more than once")
    return range(count) if slot == SLOTS[0] else range(count, len(first))


def part_of(grid: Grid, rows: range) -> Grid:
    """Those steps of a grid."""
    return Grid(len(rows), grid.timesteps[rows.start : rows.stop], grid.sigmas[rows.start : rows.stop])


def _config(pipe: object) -> Mapping[str, object]:
    found = getattr(pipe, "config", {})
    return found if isinstance(found, Mapping) else {}
