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
from mccompile.language.walk import weights_after
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import Grid, StaticMoment, evaluate
from mccompile.runtime.errors import NoForecast
from mccompile.runtime.store import Recent
from mccompile.runtime.upload import upload

KEPT = ir.Forecast(((ir.Const(1.0),),))
"""The last kept result itself."""


@dataclass(frozen=True, slots=True)
class Weights:
    """By how many computations ago: one number for all tokens, or float32 [B, L] with one for each token.

    passed: the same by how many steps ago, of the values there, computed or standing in.
    """

    values: tuple[float | np.ndarray, ...]
    passed: tuple[float | np.ndarray, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the last kept result itself stands in."""
        numbers = [w for w in self.values if isinstance(w, float)]
        last_alone = len(numbers) == len(self.values) and numbers[0] == 1.0 and not any(numbers[1:])
        return last_alone and all(isinstance(w, float) and w == 0.0 for w in self.passed)

    def sum(
        self, kept: Sequence[torch.Tensor], axis: int | None, passed: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """The weighted sum of kept results and of passed values, the latest first; axis: the token axis of both."""
        total: torch.Tensor | None = None
        for tensor, weight in (*_pairs(kept, self.values), *_pairs(passed, self.passed)):
            if isinstance(weight, float) and weight == 0.0:
                continue
            scaled = tensor.float() * (weight if isinstance(weight, float) else _along(weight, tensor, axis))
            total = scaled if total is None else total.add_(scaled)
        return torch.zeros_like(kept[0]) if total is None else total.to(kept[0].dtype)


def _pairs(
    tensors: Sequence[torch.Tensor], weights: Sequence[float | np.ndarray]
) -> tuple[tuple[torch.Tensor, float | np.ndarray], ...]:
    """Each tensor with its weight. The weights of results that are not kept yet are 0."""
    both = min(len(tensors), len(weights))
    return tuple(zip(tensors[:both], weights[:both], strict=True))


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
    depth: int  # how many of the last results are kept, for this forecast or another one of the same layers

    def of_chunk(self, step: int, recent: Recent | None, told: Mapping[str, float]) -> np.ndarray:
        """float32 [n, F, P], or [n, 1, 1] where all tokens agree, for a chunk that is about to run its own step.

        Weights of kept results come first, `depth` of them; those of passed values follow. told: the signals that the
        decision has measured, by name.
        """
        depth = self.depth + max(map(len, self.forecast.passed or ((),)))
        if recent is None:
            return np.eye(depth, 1, dtype=np.float32).reshape(depth, 1, 1)
        flat = recent.steps.reshape(len(recent.steps), -1)
        distinct, place = np.unique(flat, axis=1, return_inverse=True)
        found = np.zeros((depth, distinct.shape[1]), np.float32)
        for i, steps in enumerate(distinct.T):
            weights, passed = self._at(step, tuple(int(s) for s in steps if s >= 0), told)
            found[: len(weights), i] = weights
            found[self.depth : self.depth + len(passed), i] = passed
        if distinct.shape[1] == 1:
            return found.reshape(depth, 1, 1)
        return found[:, place.ravel()].reshape(depth, *recent.steps.shape[1:])

    def _at(
        self, step: int, computed: tuple[int, ...], told: Mapping[str, float]
    ) -> tuple[tuple[np.float32, ...], tuple[np.float32, ...]]:
        """The weights of a token that these steps computed, kept and passed. Raises NoForecast (MC0620)."""
        if not computed:
            return (np.float32(1.0),), ()
        params: Mapping[str, np.float32] = {n: np.float32(v) for n, v in self.bound.values.items()}
        known = {name: ir.Const(value) for name, value in told.items()}
        signals = {s.name: replace(s, expr=known.get(s.name, s.expr)) for s in self.bound.ir.signals}
        at = StaticMoment(params, signals, self.grid, step, {}, None, {}, computed, self.bound.depth)
        kept, passed = (
            tuple(np.float32(evaluate(w, at)) for w in weights_after(rows, len(computed)))
            for rows in (self.forecast.weights, self.forecast.passed or ((),))
        )
        if not all(map(np.isfinite, (*kept, *passed))):
            said = ", ".join(f"{weight:g}" for weight in (*kept, *passed))
            raise NoForecast(self.bound.ir, f"at step {step} its weights are {said}")
        return kept, passed


def weights_of(cells: np.ndarray, depth: int) -> Weights:
    """Weights of all cells, float32 [n, B, G, F, P], as numbers where all cells agree; `depth` of kept results."""
    flat = cells.reshape(cells.shape[0], cells.shape[1], -1)
    found = tuple(float(w.flat[0]) if (w == w.flat[0]).all() else w for w in flat)
    return Weights(found[:depth], found[depth:])
