"""What a generation came to, from its events: how much was computed in which phase, why, and what had no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mccompile import ir
from mccompile.language.walk import all_rules
from mccompile.runtime.decided import Decided, Spread, fits_outside, guards, spreads
from mccompile.runtime.finite import NOT_FINITE
from mccompile.runtime.trace import Event, share_computed


@dataclass(frozen=True, slots=True)
class Summary:
    """One generation under a policy.

    policy: its name. steps: rows of the schedule that were run. complete: the last step was run. computed: share of the
    tokens, 0..1. phases: the same for each phase that was in force, by name. why: for each reason, how many chunks it
    decided. notes: what the plan and the decisions found odd: what had no effect in a run of so many steps, fits
    outside of their domain. reuses: whether anything was reused. may_reuse: whether a rule of the policy can reuse at
    all. ages: for each number of steps since it was computed, how many chunks were reused at that age.
    signals: percentiles of each signal, and of the account, where the run decided by them. guards: how many of these
    decisions each guard changed. odd: calls whose results were not finite.
    """

    policy: str
    steps: int
    complete: bool
    computed: float
    phases: Mapping[str, float]
    why: Mapping[str, int]
    notes: tuple[str, ...]
    reuses: bool
    may_reuse: bool
    ages: Mapping[int, int] = field(default_factory=dict)
    signals: Mapping[str, Spread] = field(default_factory=dict)
    guards: Mapping[str, int] = field(default_factory=dict)
    odd: int = 0

    @property
    def inert(self) -> str:
        """What to tell of a policy that had no effect; "" where it had one, or is not meant to have any."""
        if self.reuses or not self.may_reuse or not self.steps:
            return ""
        why = "; ".join(self.notes) or "its conditions held at none of them"
        return f"policy {self.policy} reused nothing in {self.steps} steps: {why}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user must know of the run: an inert policy, or what the notes say of one that acted; odd results."""
        found = (self.inert,) if self.inert else tuple(f"policy {self.policy}: {note}" for note in self.notes)
        odd = f"the results of {self.odd} calls were not finite; nothing of them was kept"
        return (*found, *((odd,) if self.odd else ()))

    def __str__(self) -> str:
        lines = [f"{self.policy}: {self.steps} steps, {self.computed:.1%} of the tokens computed"]
        lines += [f"phase {name}: {share:.1%}" for name, share in self.phases.items()]
        lines += [f"decided by {why}: {count}" for why, count in self.why.items()]
        lines += [f"guard {name}: changed {count} decisions" for name, count in self.guards.items()]
        lines += [f"signal {name}: {spread} at 10 / 50 / 90%" for name, spread in self.signals.items()]
        ages = ", ".join(f"{count} of {age}" for age, count in sorted(self.ages.items()))
        lines += [f"reused at ages in steps: {ages}"] if ages else []
        return "\n".join([*lines, *self.warnings])


def summarise(
    policy: ir.PolicyIR, events: Sequence[Event], notes: Iterable[str], last_step: int,
    decided: Sequence[Decided] = (), odd_now: int = 0,
) -> Summary:
    """The summary of the latest request among `events`.

    notes: of its plans. last_step: of its schedule. decided: its decisions by the graph. odd_now: branches whose last
    results were not finite.
    """  # fmt: skip
    latest = [e for e in events if e.request == events[-1].request] if events else []
    phases = dict.fromkeys(e.phase for e in latest if e.phase)
    calls = {(e.row, e.branch) for e in latest if e.why == NOT_FINITE}
    return Summary(
        policy=policy.name,
        steps=len({e.row for e in latest}),
        complete=any(e.step >= last_step for e in latest),
        computed=share_computed(latest),
        phases={name: share_computed([e for e in latest if e.phase == name]) for name in phases},
        why=dict(Counter(e.why for e in latest)),
        notes=tuple(dict.fromkeys((*notes, *fits_outside(decided)))),
        reuses=any(e.action in ("reuse", "partial") for e in latest),
        may_reuse=any(not isinstance(rule, ir.Compute) for rule in all_rules(policy)),
        ages=dict(Counter(_ages(latest))),
        signals=spreads(decided),
        guards=guards(decided),
        odd=len(calls) + odd_now,
    )


def _ages(events: Iterable[Event]) -> Iterator[int]:
    """For each chunk that was reused, the steps since something of it was computed."""
    last: dict[tuple[str, int, int, str], int] = {}
    for event in events:
        place = event.branch, event.sample, event.chunk, event.region
        if event.action in ("full", "partial"):
            last[place] = event.step
        elif event.action == "reuse" and place in last:
            yield event.step - last[place]
