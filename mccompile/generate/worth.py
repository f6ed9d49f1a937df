"""What a plan is worth on a model: tokens, FLOPs and bytes, before anything is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mccompile.generate.flops import count, price
from mccompile.policy.cells import Cell, Plan
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.shared import Value
from mccompile.runtime.trace import Event


@dataclass(frozen=True, slots=True)
class Worth:
    """Shares of a run that computes everything: at least (where data lets all be reused) and at most.

    kept: bytes that the policy keeps; None where they cannot be counted. keys: which share of the keys that tokens may
    see they do see under the policy's window; None without a window.
    """

    tokens: tuple[float, float]
    flops: tuple[float, float]
    kept: int | None
    keys: float | None = None

    @property
    def speed_up(self) -> tuple[float, float]:
        """By FLOPs alone, at least and at most: the decision and the memory cost time as well."""
        low, high = self.flops
        return 1 / high, 1 / low


def worth_of(model: CompiledModel, inputs: Mapping[str, Value], plan: Plan, kept: int | None) -> Worth:
    """The worth of a plan for a chunk that goes through its steps, at the size of one call's inputs (flat, by name).

    What pending and finished chunks save is not in it.
    """
    prices = price(model.runner.lowered, inputs)
    tokens = len(prices.lengths)
    expert = model.runner.expert
    whole = [_event(cell, tokens, tokens, expert) for cell in plan.cells]
    everything = count(model, whole, replace(prices, windowed=False))
    least = [_event(cell, tokens if cell.action == "compute" else 0, tokens, expert) for cell in plan.cells]
    most = [_event(cell, 0 if cell.action == "reuse" else tokens, tokens, expert) for cell in plan.cells]
    shares = tuple(sum(e.computed for e in events) / (tokens * len(events)) for events in (least, most))
    flops = tuple(count(model, events, prices) / everything for events in (least, most))
    bound = model.runner.bound
    keys = None if bound.reach is None else float(prices.keys(bound).sum() / prices.lengths.sum())
    return Worth((shares[0], shares[1]), (flops[0], flops[1]), kept, keys)


def _event(cell: Cell, computed: int, tokens: int, expert: str) -> Event:
    action = "full" if computed else "reuse"
    return Event("", cell.step, "cond", 0, 0, cell.step, "", action, computed, tokens, "", "", expert)  # type: ignore[arg-type]
