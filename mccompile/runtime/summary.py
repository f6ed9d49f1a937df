"""What a generation came to, from its events: how much was computed in which phase, why, and what had no effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mccompile import ir
from mccompile.language.walk import all_rules
from mccompile.policy.groups import own_branches
from mccompile.runtime.decided import Decided, Spread, fits_outside, guards, spreads
from mccompile.runtime.finite import NOT_FINITE
from mccompile.runtime.trace import Event, share_computed


@dataclass(frozen=True, slots=True)
class Share:
    """A transformer's steps of the schedule, both included, and the share of their tokens that was computed, 0..1."""

    first: int
    last: int
    computed: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One generation under a policy.

    policy: its name. steps: rows of the schedule that were run, for each chunk where it went chunk by chunk. complete:
    the last step was run. computed: share of the tokens, 0..1. phases: the same for each phase that was in force, by
    name. why: for each reason, how many chunks it decided. notes: what the plan and the decisions found odd: what had
    no effect in a run of so many steps, fits outside of their domain. reuses: whether anything was reused. may_reuse:
    whether a rule of the policy can reuse at all. ages: for each number of steps since it was computed, how many chunks
    were reused at that age. signals: percentiles of each signal, and of the account, where the run decided by them.
    guards: how many of these decisions each guard changed. odd: calls whose results were not finite. experts: the parts
    of transformers that take turns, by their places in the pipeline; empty where there is only one.
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
    experts: Mapping[str, Share] = field(default_factory=dict)

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
        lines += [f"{name}: steps {e.first} to {e.last}, {e.computed:.1%}" for name, e in self.experts.items()]
        lines += [f"phase {name}: {share:.1%}" for name, share in self.phases.items()]
        lines += [f"decided by {why}: {count}" for why, count in self.why.items()]
        lines += [f"guard {name}: changed {count} decisions" for name, count in self.guards.items()]
        lines += [f"signal {name}: {spread} at 10 / 50 / 90%" for name, spread in self.signals.items()]
        ages = ", ".join(f"{count} of {age}" for age, count in sorted(self.ages.items()))
        lines += [f"reused at ages in steps: {ages}"] if ages else []
        return "\n".join([*lines, *self.warnings])


@dataclass(slots=True)
class LatestRun:
    """The requests of the latest generation: one, or one for each chunk of a pipeline that goes chunk by chunk.

    told: whether the clock tells when a generation is over; otherwise each request is one. over: it is.
    """

    told: bool = False
    over: bool = False
    requests: set[str] = field(default_factory=set)

    def goes_on(self, request: str) -> bool:
        """Notes the request of a call. Says whether it follows another one of the same generation."""
        if request not in self.requests and (self.over or not self.told):
            self.requests.clear()
        self.requests.add(request)
        self.over = False
        return len(self.requests) > 1


@dataclass(frozen=True, slots=True)
class Ran:
    """One transformer's part of the latest generation.

    name: of its place in the pipeline, "" where it is the only one. notes: of its plans. first, last: its steps of the
    schedule. decided: its decisions by the graph. odd: branches whose last results were not finite.
    """

    name: str
    policy: ir.PolicyIR
    notes: tuple[str, ...]
    first: int
    last: int
    decided: tuple[Decided, ...] = ()
    odd: int = 0

    def told(self) -> tuple[str, ...]:
        """What its plans and its decisions found odd."""
        where = f"{self.name}: " if self.name else ""
        return tuple(f"{where}{note}" for note in (*self.notes, *fits_outside(self.decided)))


def summarise(parts: Sequence[Ran], events: Sequence[Event], requests: Collection[str] = ()) -> Summary:
    """The summary of some requests among `events`, or of the latest one.

    parts: of the transformers that took part in them, in order.
    """
    latest = [e for e in events if e.request in (requests or (events[-1].request,))]
    phases = dict.fromkeys(e.phase for e in latest if e.phase)
    calls = {(e.request, e.row, e.branch) for e in latest if e.why == NOT_FINITE}
    decided = [decision for part in parts for decision in part.decided]
    return Summary(
        policy=" and ".join(dict.fromkeys(part.policy.name for part in parts)),
        steps=len({(e.request, e.row) for e in latest}),
        complete=any(e.step >= max(part.last for part in parts) for e in latest),
        computed=share_computed(latest),
        phases={name: share_computed([e for e in latest if e.phase == name]) for name in phases},
        why=dict(Counter(e.why for e in latest)),
        notes=tuple(dict.fromkeys(note for part in parts for note in (*part.told(), *_idle_branches(part, latest)))),
        reuses=any(e.action in ("reuse", "partial") for e in latest),
        may_reuse=any(_may_reuse(rule) for part in parts for rule in all_rules(part.policy)),
        ages=dict(Counter(_ages(latest))),
        signals=spreads(decided),
        guards=guards(decided),
        odd=len(calls) + sum(part.odd for part in parts),
        experts={part.name: _share(part, latest) for part in parts if part.name},
    )


def _idle_branches(part: Ran, latest: Sequence[Event]) -> Iterator[str]:
    """What to tell of guidance branches that have rules of their own, and that were never called."""
    called = {e.branch for e in latest}
    for branch in own_branches(part.policy) if called else ():
        if branch not in called:
            yield f"no call of the branch {branch} was made: its rules acted nowhere"


def _may_reuse(rule: ir.Rule) -> bool:
    """Whether the rule can say anything but compute. A mask of computed steps measures a run and is not meant to."""
    match rule:
        case ir.Compute():
            return False
        case ir.StepMask():
            return not all(rule.compute)
        case _:
            return True


def _share(part: Ran, events: Sequence[Event]) -> Share:
    own = [e for e in events if part.first <= e.step <= part.last]
    return Share(part.first, part.last, share_computed(own))


def _ages(events: Iterable[Event]) -> Iterator[int]:
    """For each chunk that was reused, the steps since something of it was computed."""
    last: dict[tuple[str, str, int, int, str], int] = {}
    for event in events:
        place = event.request, event.branch, event.sample, event.chunk, event.region
        if event.action in ("full", "partial"):
            last[place] = event.step
        elif event.action == "reuse" and place in last:
            yield event.step - last[place]
