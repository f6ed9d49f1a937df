"""What laws are tried on: a pipeline, or a module of one's own, that runs a few steps at two small sizes.

A subject runs with whatever stands in its transformer's place. The same noise is drawn each time.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile import api
from mccompile.generate.part_laws import moved
from mccompile.ir import PolicyIR
from mccompile.lowering.locate import latent_inputs, timestep_of
from mccompile.pipelines.finding import driver_for
from mccompile.policy.phases import Grid
from mccompile.runtime.clock import Timeline, steps_in_order
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.stand_in import StandIn, put_transformer, transformer_of

_NONE: Mapping[str, float] = MappingProxyType({})
SIZES = (0, 1)  # of the runs: the first, and another one


class LawSubject(ABC):
    """prepared: its capture."""

    prepared: api.Prepared

    @abstractmethod
    def compile(
        self, policy: PolicyIR | str, numbers: Mapping[str, float] = _NONE, fold: bool = True
    ) -> CompiledModel:
        """The policy on the eager backend, in the transformer's place until `restore`."""

    @abstractmethod
    def restore(self) -> None:
        """The model itself stands in its place again."""

    @abstractmethod
    def nudge(self) -> None:
        """The model stands in its place, and each of its calls gets latents that are off by a rounding."""

    @abstractmethod
    def run(self, size: int) -> torch.Tensor:
        """What a run at one of the SIZES gives, as one tensor."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model itself."""

    @property
    def dtype(self) -> torch.dtype:
        """That in which most numbers of the model's weights are."""
        counts: Counter[torch.dtype] = Counter()
        for weight in self.model.parameters():
            counts[weight.dtype] += weight.numel() if weight.is_floating_point() else 0
        return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


class _Nudged(StandIn):
    """The model on latents that differ from those given by one rounding of its dtype, up or down at random."""

    def __init__(self, model: nn.Module, latents: frozenset[str], dtype: torch.dtype) -> None:
        super().__init__(model)
        self._latents, self._step = latents, torch.finfo(dtype).eps
        self._noise = torch.Generator().manual_seed(0)

    def forward(self, *args: object, **kwargs: object) -> object:
        call = self.arguments_of(*args, **kwargs)
        return self.model(**{k: pytree.tree_map(self._off, v) if k in self._latents else v for k, v in call.items()})

    def _off(self, value: object) -> object:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        sign = torch.randint(0, 2, value.shape, generator=self._noise).mul(2).sub(1).to(value)
        return value * (1 + sign * self._step)


@dataclass
class PipelineSubject(LawSubject):
    """A pipeline, with the arguments of its two small runs."""

    pipe: object
    prepared: api.Prepared
    runs: tuple[Mapping[str, object], Mapping[str, object]]
    _compiled: CompiledModel | None = None
    _own: nn.Module | None = None

    @staticmethod
    def of(pipe: object, arguments: Mapping[str, object], steps: int) -> PipelineSubject:
        """arguments: further ones of the pipeline's call. Raises what `api.prepare` raises, and ProbeFailed."""
        given = {**arguments, "num_inference_steps": steps}
        runs = driver_for(pipe).small_runs(pipe, given)
        return PipelineSubject(pipe, api.prepare(pipe, call=arguments), runs)

    @property
    def model(self) -> nn.Module:
        return api.own_transformer(self.pipe)

    def compile(
        self, policy: PolicyIR | str, numbers: Mapping[str, float] = _NONE, fold: bool = True
    ) -> CompiledModel:
        self.restore()
        call = {k: v for k, v in self.prepared.call.items() if k in driver_for(self.pipe).fixed}
        self._compiled = api.compile(
            self.pipe, policy, backend="eager", captured=self.prepared, call=call, fold=fold, **dict[str, Any](numbers)
        )
        return self._compiled

    def restore(self) -> None:
        if self._compiled is not None:
            self._compiled.undo()
        if self._own is not None:
            put_transformer(self.pipe, self._own)
        self._compiled = self._own = None

    def nudge(self) -> None:
        self.restore()
        self._own = transformer_of(self.pipe)
        assert self._own is not None
        put_transformer(self.pipe, _Nudged(self._own, latent_inputs(self.prepared.model), self.dtype))

    def run(self, size: int) -> torch.Tensor:
        torch.manual_seed(0)  # for pipelines that draw from the global generator
        accepted = inspect.signature(self.pipe.__call__).parameters  # type: ignore[operator]
        more = {"generator": torch.Generator().manual_seed(0)} if "generator" in accepted else {}
        result = self.pipe(**{**self.runs[size], **more})[0]  # type: ignore[operator]
        parts = [torch.as_tensor(x) for x in (result if isinstance(result, list | tuple) else [result])]
        return torch.cat([x.flatten().double() for x in parts])


@dataclass
class ModuleSubject(LawSubject):
    """A module with two calls; a run is `steps` calls with other latents and another timestep each."""

    own: nn.Module
    prepared: api.Prepared
    calls: tuple[Mapping[str, object], Mapping[str, object]]
    steps: int
    _now: nn.Module | None = None
    _clock: Timeline | None = field(default=None)
    _requests: int = 0

    @staticmethod
    def of(model: nn.Module, probe: api.ExampleCall, second: api.ExampleCall, steps: int) -> ModuleSubject:
        """Raises what `api.prepare` raises."""
        return ModuleSubject(model, api.prepare(model, probe=probe, second=second), (probe, second), steps)

    @property
    def model(self) -> nn.Module:
        return self.own

    def compile(
        self, policy: PolicyIR | str, numbers: Mapping[str, float] = _NONE, fold: bool = True
    ) -> CompiledModel:
        grid = grid_of_steps(self.steps)
        self._clock = Timeline("", grid, steps_in_order(grid))
        compiled = api.compile(
            self.model, policy, backend="eager", captured=self.prepared, clock=self._clock, fold=fold,
            **dict[str, Any](numbers),
        )
        self._now = compiled
        return compiled

    def restore(self) -> None:
        self._now = self._clock = None

    def nudge(self) -> None:
        self.restore()
        self._now = _Nudged(self.model, latent_inputs(self.prepared.model), self.dtype)

    def run(self, size: int) -> torch.Tensor:
        noise = torch.Generator().manual_seed(size)
        found = []
        self._requests += 1
        if self._clock is not None:
            self._clock.request = str(self._requests)
        for row, timestep in enumerate(grid_of_steps(self.steps).timesteps):
            if self._clock is not None:
                self._clock.row = row
            call = self._at(self.calls[size], timestep, noise)
            with torch.no_grad():
                result = (self._now or self.model)(**call)
            found += [x.flatten().double() for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        return torch.cat(found)

    def _at(self, call: Mapping[str, object], timestep: float, noise: torch.Generator) -> dict[str, object]:
        latents, told = latent_inputs(self.prepared.model), timestep_of(self.prepared.model)
        changed = {k: pytree.tree_map(lambda x: moved(x, noise), v) if k in latents else v for k, v in call.items()}
        given = changed.get(told)
        return changed | ({told: torch.full_like(given, timestep)} if isinstance(given, torch.Tensor) else {})


def grid_of_steps(steps: int) -> Grid:
    """Whole timesteps from 1000 down, evenly."""
    times = tuple(float(round(1000 * (1 - k / steps))) for k in range(steps))
    return Grid(steps, times, tuple(t / 1000 for t in times))


def without_budget(policy: PolicyIR) -> PolicyIR:
    """The policy with its results kept as they are computed: laws are about that, and not about bytes."""
    plain = replace(policy.cache, dtype="model", residual="model", device="model", budget=None)
    return replace(policy, cache=plain)
