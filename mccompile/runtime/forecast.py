"""What stands in for a kept result on reuse: a weighted sum of the last kept results, token by token.

The clock and the steps that computed a token settle its weights, so the host knows them before the blocks run. Tokens
that were computed at the same steps have the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mccompile import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import Grid, StaticMoment, evaluate
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.store import Recent
from mccompile.runtime.upload import upload

KEPT = ir.Forecast(((ir.Const(1.0),),))
"""The last kept result itself."""


@dataclass(frozen=True, slots=True)
class Weights:
    """By how many computations ago: one number for all tokens, or float32 [B, L] with one for each token."""

    values: tuple[float | np.ndarray, ...]

    @property
    def plain(self) -> bool:
        """Whether the last kept result itself stands in."""
        numbers = [w for w in self.values if isinstance(w, float)]
        return len(numbers) == len(self.values) and numbers[0] == 1.0 and not any(numbers[1:])

    def sum(self, kept: Sequence[torch.Tensor], axis: int | None) -> torch.Tensor:
        """The weighted sum of kept results, the latest first; axis: the token axis of their stream."""
        total: torch.Tensor | None = None
        values = self.values[: len(kept)]  # the weights of results that are not kept yet are 0
        for tensor, weight in zip(kept[: len(values)], values, strict=True):
            if isinstance(weight, float) and weight == 0.0:
                continue
            scaled = tensor.float() * (weight if isinstance(weight, float) else _along(weight, tensor, axis))
            total = scaled if total is None else total.add_(scaled)
        return torch.zeros_like(kept[0]) if total is None else total.to(kept[0].dtype)


def _along(weight: np.ndarray, like: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Weights [B, L] in a shape that broadcasts to a stream with samples first and tokens along `axis`."""
    assert axis is not None
    shape = [1] * like.dim()
    shape[0], shape[axis] = weight.shape
    return upload(weight, like.device).view(shape)


@dataclass(frozen=True, slots=True)
class Weighing:
    """The weights of one forecast under the parameters of a request, at the steps of a grid."""

    forecast: ir.Forecast
    bound: BoundPolicy
    grid: Grid

    def of_chunk(self, step: int, recent: Recent | None, told: Mapping[str, float]) -> np.ndarray:
        """float32 [n, F, P], or [n, 1, 1] where all tokens agree, for a chunk that is about to run its own step.

        told: the signals that the decision has measured, by name.
        """
        depth = max(map(len, self.forecast.weights))
        if recent is None:
            return np.eye(depth, 1, dtype=np.float32).reshape(depth, 1, 1)
        flat = recent.steps.reshape(len(recent.steps), -1)
        distinct, place = np.unique(flat, axis=1, return_inverse=True)
        found = np.zeros((depth, distinct.shape[1]), np.float32)
        for i, steps in enumerate(distinct.T):
            weights = self._at(step, tuple(int(s) for s in steps if s >= 0), told)
            found[: len(weights), i] = weights
        if distinct.shape[1] == 1:
            return found.reshape(depth, 1, 1)
        return found[:, place.ravel()].reshape(depth, *recent.steps.shape[1:])

    def _at(self, step: int, computed: tuple[int, ...], told: Mapping[str, float]) -> tuple[np.float32, ...]:
        """The weights of a token that these steps computed, the latest first. Raises NoForecast (MC0620)."""
        if not computed:
            return (np.float32(1.0),)
        rows = self.forecast.weights
        params: Mapping[str, np.float32] = {n: np.float32(v) for n, v in self.bound.values.items()}
        known = {name: ir.Const(value) for name, value in told.items()}
        signals = {s.name: replace(s, expr=known.get(s.name, s.expr)) for s in self.bound.ir.signals}
        at = StaticMoment(params, signals, self.grid, step, {}, None, {}, computed)
        found = tuple(np.float32(evaluate(w, at)) for w in rows[min(len(computed), len(rows)) - 1])
        if not all(map(np.isfinite, found)):
            said = ", ".join(f"{weight:g}" for weight in found)
            raise NoForecast(self.bound.ir, f"at step {step} its weights are {said}")
        return found


def weights_of(cells: np.ndarray) -> Weights:
    """Weights of all cells, float32 [n, B, G, F, P], as numbers where all cells agree."""
    flat = cells.reshape(cells.shape[0], cells.shape[1], -1)
    return Weights(tuple(float(w.flat[0]) if (w == w.flat[0]).all() else w for w in flat))
