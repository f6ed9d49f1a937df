"""What a generation keeps while it is under way, of each guidance branch and of each sample that is run alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mccompile.policy.planner import Plan
from mccompile.runtime.clock import Told, Untold
from mccompile.runtime.pair import Foresight
from mccompile.runtime.store import BranchStore


@dataclass(slots=True)
class Request:
    """State of one generation: a store for each guidance branch, and a plan for each of its groups of regions.

    others: the same of further samples, where each sample is run alone.
    """

    branches: dict[str, BranchStore] = field(default_factory=dict)
    planned: dict[str, Mapping[str, Plan]] = field(default_factory=dict)
    told: dict[str, Told | Untold | None] = field(default_factory=dict)  # that each plan was made with
    foresight: Foresight = field(default_factory=Foresight)
    others: dict[int, Request] = field(default_factory=dict)

    def of(self, sample: int) -> Request:
        """That of a sample, begun where it is new."""
        return self.others.setdefault(sample, Request()) if sample else self

    @property
    def each(self) -> tuple[Request, ...]:
        """Those of all samples."""
        return self, *self.others.values()

    @property
    def plans(self) -> dict[str, Plan]:
        """The plan of each branch; of each of its groups, where regions have names."""
        return {f"{name} {group}".strip(): p for name, of in self.planned.items() for group, p in of.items()}

    def odd(self) -> int:
        """How many branches ended on results that were not finite."""
        stores = (store for each in self.each for store in each.branches.values())
        return sum(not store.is_finite() for store in stores)
