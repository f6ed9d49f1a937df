"""What a generation came to, from its events: how much was computed in which phase, why, and what had no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mccompile import ir
from mccompile.runtime.trace import Event, share_computed


@dataclass(frozen=True, slots=True)
class Summary:
    """One generation under a policy.

    policy: its name. steps: rows of the schedule that were run. complete: the last step was run. computed: share of the
    tokens, 0..1. phases: the same for each phase that was in force, by name. why: for each reason, how many chunks it
    decided. notes: what of the policy had no effect in a run of so many steps. reuses: whether anything was reused.
    may_reuse: whether a rule of the policy can reuse at all.
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

    @property
    def inert(self) -> str:
        """What to tell of a policy that had no effect; "" where it had one, or is not meant to have any."""
        if self.reuses or not self.may_reuse or not self.steps:
            return ""
        why = "; ".join(self.notes) or "its conditions held at none of them"
        return f"policy {self.policy} reused nothing in {self.steps} steps: {why}"

    def __str__(self) -> str:
        lines = [f"{self.policy}: {self.steps} steps, {self.computed:.1%} of the tokens computed"]
        lines += [f"phase {name}: {share:.1%}" for name, share in self.phases.items()]
        lines += [f"decided by {why}: {count}" for why, count in self.why.items()]
        return "\n".join([*lines, *self.notes, *([self.inert] if self.inert else [])])


def summarise(policy: ir.PolicyIR, events: Sequence[Event], notes: Iterable[str], last_step: int) -> Summary:
    """The summary of the latest request among `events`. notes: of its plans. last_step: of its schedule."""
    latest = [e for e in events if e.request == events[-1].request] if events else []
    phases = dict.fromkeys(e.phase for e in latest if e.phase)
    return Summary(
        policy=policy.name,
        steps=len({e.row for e in latest}),
        complete=any(e.step >= last_step for e in latest),
        computed=share_computed(latest),
        phases={name: share_computed([e for e in latest if e.phase == name]) for name in phases},
        why=dict(Counter(e.why for e in latest)),
        notes=tuple(dict.fromkeys(notes)),
        reuses=any(e.action in ("reuse", "partial") for e in latest),
        may_reuse=any(not isinstance(p.rule, ir.Compute) for p in policy.phases),
    )
