"""Two policies in step: what each may decide while both run on one schedule, and how their decisions are linked.

The walk goes through the situations of a chunk under both policies at once. It assumes nothing of what is measured, but
that two runs which have decided alike so far measure alike, and that what the timestep alone decides is the same in any
two runs. So it has at least every pair of runs: what holds in all of its pairs is proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from mccompile import ir
from mccompile.language.decided import decided
from mccompile.language.intervals import Ranges
from mccompile.language.walk import children, deciding, rule_expressions, walk, walk_rule
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import TIMESTEP_SOURCES, Grid
from mccompile.policy.facts import account_names
from mccompile.policy.planner import after, first_situation, looks_back_most, steps_of
from mccompile.policy.rules import Decision, Situation, Static, decide, looks_back
from mccompile.policy.settled import rebuilt


@dataclass(frozen=True, slots=True)
class Situations:
    """A chunk's situations under both policies.

    alike: both have decided alike so far, so that both measure the same. level: accounts and counts of their cells are
    the same.
    """

    a: Situation
    b: Situation
    alike: bool
    level: bool


@dataclass(frozen=True, slots=True)
class Linked:
    """What both decide in one pair of situations.

    within: every cell that A reuses is reused by B. around: every cell that B reuses is reused by A. standing: in the
    cells that both reuse, the same stands in. All are facts, and False means that nothing is known.
    """

    pair: Situations
    a: Decision
    b: Decision
    within: bool
    around: bool
    standing: bool

    @property
    def equal(self) -> bool:
        """Both give the same results, if what they reuse is the same."""
        return self.within and self.around and self.standing


@dataclass(frozen=True, slots=True)
class Two:
    """Two settled policies on one grid, with what is known of timestep-only signals."""

    a: BoundPolicy
    b: BoundPolicy
    grid: Grid
    static: Static

    def steps(self) -> tuple[tuple[Linked, ...], ...]:
        """For every step, all that both may decide.

        Chunks and guidance branches see each other's results. So where a step can part the two runs, no chunk is taken
        to measure the same in both, not even at the steps before: another chunk may be ahead of it.
        """
        found = self._walk(alike=same_results(self.a.ir, self.b.ir))
        apart = any(not one.equal for linked in found for one in linked)
        return self._walk(alike=False) if apart else found

    def until_apart(self) -> tuple[tuple[Linked, ...], ...]:
        """As `steps`, as long as every chunk has run alike: the last step is the first that can part the runs."""
        found = []
        for linked in self._walk(alike=same_results(self.a.ir, self.b.ir)):
            found.append(linked)
            if any(not one.equal for one in linked):
                break
        return tuple(found)

    def _walk(self, alike: bool) -> tuple[tuple[Linked, ...], ...]:
        pairs = {Situations(first_situation(self.a), first_situation(self.b), alike, level=True)}
        back = looks_back_most(self.a), looks_back_most(self.b)
        found = []
        for _ in range(self.grid.steps):
            linked = tuple(self._linked(pair) for pair in pairs)
            found.append(linked)
            pairs = {later for one in linked for later in self._after(one, back)}
        return tuple(found)

    def _linked(self, pair: Situations) -> Linked:
        one = decide(self.a, self.grid, pair.a, self.static)
        other = decide(self.b, self.grid, pair.b, self.static)
        if one.compute is None and other.compute is None:
            within = around = False
            if self._refreshed_alike(pair):
                rules = self._rules(one, other)
                within, around = (self._reuses_within(first, second, pair) for first, second in (rules, rules[::-1]))
            return Linked(pair, one, other, within, around, self._standing(one, other, within and around))
        within = one.compute is True or other.compute is False
        around = other.compute is True or one.compute is False
        return Linked(pair, one, other, within, around, self._standing(one, other, False))

    def _standing(self, one: Decision, other: Decision, agree: bool) -> bool:
        """The same stands in where both reuse a cell. agree: data decides in both, and they reuse the same cells."""
        if one.compute is True or other.compute is True:
            return True
        rules = self._rules(one, other)
        if agree and _now(rules[0]) == _now(rules[1]):
            return True
        return len(_stand_ins(rules[0], one) | _stand_ins(rules[1], other)) == 1

    def _rules(self, one: Decision, other: Decision) -> tuple[ir.Rule, ir.Rule]:
        return self.a.ir.phases[one.phase].rule, self.b.ir.phases[other.phase].rule

    def _refreshed_alike(self, pair: Situations) -> bool:
        """Keys and values are due at the same steps, or never."""
        every = self.a.ir.cache.refresh_every, self.b.ir.cache.refresh_every
        return every == (None, None) or (every[0] == every[1] and pair.level)

    def _reuses_within(self, rule: ir.Rule, other: ir.Rule, pair: Situations) -> bool:
        """Every cell that `rule` reuses is reused under `other`, where data decides in both."""
        if not _shared(rule, pair) or not _shared(other, pair):
            return False
        if _now(rule) == _now(other):
            return self.a.merges == self.b.merges
        if self.a.merges or self.b.merges:
            return False  # whether a cell is computed depends on whether any other one of its chunk is
        if not (isinstance(rule, ir.Reuse) and isinstance(other, ir.Reuse)):
            return False
        if rule.granularity != other.granularity or _coupled(rule) or _coupled(other):
            return False
        limits = ((rule.max_consecutive, other.max_consecutive), (rule.max_total, other.max_total))
        if not all(_tighter(mine, theirs) for mine, theirs in limits):
            return False
        finite = {*deciding(rule.condition, {}), *_sums(rule)}
        if not all(e in finite or isinstance(e, ir.Const) for e in (*deciding(other.condition, {}), *_sums(other))):
            return False  # the other one computes a cell of which it reads what is no number
        return implies(rule.condition, other.condition)

    def _after(self, linked: Linked, back: tuple[int, int]) -> Iterator[Situations]:
        pair, one, other = linked.pair, linked.a, linked.b
        equal = linked.equal
        grown = self._grown_alike(linked)
        outcomes = (
            _outcomes(self.a, self.grid, pair.a, one, back[0]), _outcomes(self.b, self.grid, pair.b, other, back[1])
        )  # fmt: skip
        for (reused, first), (also, second) in product(*outcomes):
            if (linked.within and reused and not also) or (linked.around and also and not reused):
                continue
            wholly = one.compute is True and other.compute is True
            alike = equal or (reused and also and linked.standing)
            yield Situations(first, second, pair.alike and alike, wholly or (pair.level and alike and grown))

    def _grown_alike(self, linked: Linked) -> bool:
        """Both rules add the same to the accounts of a cell that they reuse."""
        one, other = linked.a, linked.b
        if one.accounts is not None and other.accounts is not None:
            return one.accounts == other.accounts and account_names(self.a.ir) == account_names(self.b.ir)
        rules = self._rules(one, other)
        sums = _sums(rules[0])
        if sums != _sums(rules[1]):
            return False
        shared = linked.pair.alike or all(_timestep_only(e) for added in sums for e in walk(added, {}))
        holds = any(isinstance(rule, ir.Reuse) and rule.hold_below is not None for rule in rules)
        return shared and (not holds or _now(rules[0]) == _now(rules[1]))


def _shared(rule: ir.Rule, pair: Situations) -> bool:
    """What the rule reads is the same in both runs."""
    read = tuple(walk_rule(rule, {}))
    counts = isinstance(rule, ir.Reuse | ir.Top) and (rule.max_consecutive is not None or rule.max_total is not None)
    remembers = counts or any(isinstance(e, ir.Accumulate | ir.Kept) for e in read)
    if pair.alike:
        return pair.level or not remembers
    if not all(_timestep_only(e) for e in read) or isinstance(rule, ir.Top):
        return False
    if not remembers:
        return True
    total = isinstance(rule, ir.Reuse) and rule.max_total is not None
    chunk_alone = isinstance(rule, ir.Reuse) and rule.granularity > ir.Granularity.STEP
    return pair.level and chunk_alone and not total and looks_back(rule, {}) <= 1


def _outcomes(
    bound: BoundPolicy, grid: Grid, at: Situation, decision: Decision, back: int
) -> Iterable[tuple[bool, Situation]]:
    """The situations after a decision, each with whether all was reused."""
    found = tuple(after(bound, grid, at, decision, back))
    return zip((True, False), found, strict=True) if decision.compute is None else ((not decision.compute, found[0]),)


def same_results(a: ir.PolicyIR, b: ir.PolicyIR) -> bool:
    """Both policies give the same results where they decide alike."""
    return (a.regions, a.chunks, a.branches, a.cache) == (b.regions, b.chunks, b.branches, b.cache)


def implies(condition: ir.Expr, other: ir.Expr) -> bool:
    """Whether the other condition holds wherever this one does, for all values of what both read alike."""
    fails = ir.Apply("and", (_opaque(condition), ir.Apply("not", (_opaque(other),))))
    return decided(fails, Ranges({}, {})) is False


def _opaque(condition: ir.Expr) -> ir.Expr:
    """The condition in which every calculation is a name of its own.

    The bounds of a calculation are those of real numbers, and a graph rounds. A distance is never negative in either,
    except that of an angle.
    """

    def named(expr: ir.Expr) -> ir.Expr | None:
        match expr:
            case ir.Apply(op) if op in ("and", "or", "not", "lt", "le", "gt", "ge"):
                return None
            case ir.Const() | ir.ClockRef("step") | ir.FrameDiff() | ir.Change("rel_l1" | "l1" | "l2"):
                return expr
            case _:
                return ir.SignalRef(repr(expr))

    found = rebuilt(condition, named)
    assert isinstance(found, ir.Expr)
    return found


def _timestep_only(expr: ir.Expr) -> bool:
    """Nothing but the timestep decides this node, apart from what lies below it."""
    match expr:
        case ir.Change(_, of, since, _, _, a):
            return of.name in TIMESTEP_SOURCES and since == "step" and a is None
        case ir.FrameDiff() | ir.Similarity():
            return False
        case _:
            return True


def _now(rule: ir.Rule) -> ir.Rule:
    """What the rule says at a step that is not one of its steps of computing all."""
    return replace(rule, all_at=None) if isinstance(rule, ir.Reuse | ir.Top) else rule


def _stand_ins(rule: ir.Rule, decision: Decision) -> frozenset[ir.Forecast | None]:
    """What may stand in where the rule reuses; None: what the layers say."""
    if not isinstance(rule, ir.Reuse) or rule.stand_ins is None:
        return frozenset({None})
    return frozenset(rule.stand_ins if decision.compute is None else (rule.stand_ins[decision.way],))


def stand_ins_by_step(bound: BoundPolicy, grid: Grid, static: Static) -> tuple[frozenset[ir.Forecast | None], ...]:
    """For every step, what a settled policy lets stand in where it reuses; None: what the layers say."""
    found = (steps.values() for steps in steps_of(bound, grid, static))
    return tuple(
        frozenset().union(*(_stand_ins(bound.ir.phases[d.phase].rule, d) for d in decisions if not d.compute))
        for decisions in found
    )


def _coupled(rule: ir.Reuse) -> bool:
    """One cell's decision depends on the others'."""
    return any(g is not None for g in (rule.vote, rule.hold_below, rule.all_above, rule.max_reused))


def _tighter(mine: ir.Expr | None, theirs: ir.Expr | None) -> bool:
    """A limit of reuses is reached wherever the other one is."""
    if theirs is None or mine == theirs:
        return True
    return isinstance(mine, ir.Const) and isinstance(theirs, ir.Const) and mine.value <= theirs.value


def _sums(rule: ir.Rule) -> frozenset[ir.Accumulate]:
    """What the rule adds to accounts where it reuses."""
    if not isinstance(rule, ir.Reuse):
        return frozenset()
    return frozenset(e for e in walk(rule.condition, {}) if isinstance(e, ir.Accumulate))


def measured(policy: ir.PolicyIR) -> tuple[ir.Expr, ...]:
    """The expressions of a settled policy that measure something of the model, in the order of their use."""
    read = (e for p in policy.phases for e in walk_rule(p.rule, {}))
    return tuple(dict.fromkeys(e for e in read if isinstance(e, ir.Change | ir.FrameDiff | ir.Similarity)))


def reads_noise_level(policy: ir.PolicyIR) -> bool:
    """A rule or a phase of a settled policy reads the timestep or sigma, so that the grid matters."""
    spans = (s.clock for p in policy.phases if isinstance(s := p.span, ir.Between))
    read = (e for p in policy.phases for top in rule_expressions(p.rule) for e in _all(top))
    return any(isinstance(e, ir.ClockRef) and e.what in ("timestep", "sigma") for e in (*spans, *read))


def _all(expr: ir.Expr) -> Iterator[ir.Expr]:
    yield expr
    for child in children(expr):
        yield from _all(child)
