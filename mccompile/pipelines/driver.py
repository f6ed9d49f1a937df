"""What the compiler must know about a kind of pipeline: how to record it, its clock, branches and fixed arguments.

A kind is one file in the folder kinds/. It holds a subclass of `Driver`, whose instance is named DRIVER. A pipeline
that fits no kind is a pipeline of plain steps (`steps.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

from mccompile import ir
from mccompile.pipelines.experts import refuse_others
from mccompile.pipelines.grids import even_grid, gives_sigmas, grid_of
from mccompile.pipelines.probe import (
    MEDIA,
    SIZES,
    Declared,
    ExampleCall,
    arguments_at,
    record_calls,
    record_declared,
    unseen_sizes,
)
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Attached, Clock
from mccompile.runtime.stand_in import ExpertSlot, slots_of


class PipelineClock(Clock, Attached, Protocol):
    """A clock that hangs on a pipeline while it is used."""


class Driver(ABC):
    """One kind of pipeline. What is not overridden is that of a pipeline whose frames all take the same step.

    fixed: arguments of the pipeline's call, besides its size, that change how it calls its transformer; what is
    compiled holds for the values that they had.
    """

    fixed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fits(self, pipe: object) -> bool:
        """Whether a pipeline is of this kind, told by what it offers and not by its name."""

    @abstractmethod
    def clock(self, pipe: object) -> PipelineClock:
        """A new clock for a pipeline of this kind."""

    def experts(self, pipe: object) -> tuple[ExpertSlot, ...]:
        """The places of the transformers that run the steps of a generation, in the order in which they do.

        Raises SecondTransformer (MC0713) where another one of the pipeline would run without the policy.
        """
        own = slots_of(pipe)[:1]
        refuse_others(pipe, own)
        return own

    def record(
        self, pipe: object, arguments: Mapping[str, object], larger: bool = False
    ) -> tuple[ExampleCall, ExampleCall]:
        """The transformer's keyword arguments at two small sizes. Raises NotAPipeline, ProbeFailed.

        arguments: further arguments of the pipeline's call. Of its size only the frames are used, where others fail.
        larger: at larger sizes, for a model that does not run at the smallest ones that its pipeline takes.
        """
        return record_calls(pipe, arguments, larger)

    def declared(self, pipe: object, arguments: Mapping[str, object]) -> Declared:
        """The call, and the number of guidance branches, that a budget is met at. Raises ProbeFailed.

        arguments: of the pipeline's call, with its size.
        """
        return record_declared(pipe, arguments)

    def grid(self, pipe: object, steps: int, arguments: Mapping[str, object]) -> Grid:
        """The step grid of a run of so many steps. Raises ProbeFailed.

        arguments: of the pipeline's call, with its size, on which the grid of some pipelines depends. Pipelines that
        give their scheduler more than the number of steps are asked for a call; the others' schedulers are told it.
        """
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is None:
            return even_grid(steps)
        if gives_sigmas(pipe):
            self.declared(pipe, {**arguments, "num_inference_steps": steps})
        else:
            scheduler.set_timesteps(steps)
        return grid_of(scheduler)

    def small_runs(self, pipe: object, arguments: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
        """The arguments of two short runs of the pipeline, at small sizes that `record` does not show.

        arguments: further arguments of the pipeline's call, without its size. Raises ProbeFailed.
        """
        one, two = unseen_sizes(pipe, arguments)
        return arguments_at(pipe, one, arguments), arguments_at(pipe, two, arguments)

    def fixed_by(self, policy: ir.PolicyIR) -> dict[str, object]:
        """The fixed arguments that a policy's own words determine."""
        return {}

    def completed(self, pipe: object, arguments: Mapping[str, object]) -> dict[str, object]:
        """The arguments of a call with those added that this kind of pipeline needs beside them."""
        return dict(arguments)

    def announce(self, pipe: object, arguments: Mapping[str, object]) -> None:  # noqa: B027  # most set nothing
        """Sets now what the call with these arguments will set in the transformer's configuration."""

    def changing(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Those of the arguments that change how the transformer is called: the fixed ones, the size, the media."""
        return {k: v for k, v in arguments.items() if k in (*self.fixed, *SIZES, *MEDIA)}
