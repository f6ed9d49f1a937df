"""Claims about policies, and what can be said of them: proved, refuted by a schedule, or not known.

`implies`: wherever A reuses a token, B reuses it. `equivalent`: both compute the same tokens at every step, and all
else that changes a result is the same. `never-reuses`: A computes every token of these steps. A claim is about every
chunk of every run with these numbers of steps, on every model and prompt. docs/prove.md has the exact words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, assert_never

from mccompile import ir
from mccompile.language.depth import block_bounds, blocks_of, part_of
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import Grid
from mccompile.policy.groups import decides_apart
from mccompile.policy.planner import run_problems, steps_of
from mccompile.policy.rules import Decision, Static
from mccompile.policy.settled import settled
from mccompile.policy.together import Linked, Two, reads_noise_level, same_results
from mccompile.policy.witness import Actions, Witness, witness

ClaimAnswer = Literal["proved", "refuted", "unknown"]
NOTHING = Static({}, frozenset())
MOST_GRIDS = 6
"""Grids on which a schedule is looked for: those at equal distances of all on which the claim may fail."""
DEEPEST = 128  # blocks of a model that are looked at, to compare ranges from both ends


@dataclass(frozen=True, slots=True)
class Implies:
    """Wherever A reuses a token, B reuses it."""

    b: BoundPolicy


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A and B compute the same tokens, and give the same results."""

    b: BoundPolicy


@dataclass(frozen=True, slots=True)
class NeverReuses:
    """A computes every token at the steps first..last of a chunk, both included."""

    first: int
    last: int


Claim = Implies | Equivalent | NeverReuses


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """What is known of a claim, and why. runs: the numbers of steps that were looked at, in order.

    shown: the schedule that refutes the claim, where measured values or a grid do.
    """

    outcome: ClaimAnswer
    reason: str
    runs: tuple[int, ...]
    shown: Witness | None = None


def prove(a: BoundPolicy, claim: Claim, grids: Sequence[Grid]) -> ClaimVerdict:
    """The verdict on a claim about A, for runs on these grids."""
    if any(decides_apart(bound.ir) for bound in ([a] if isinstance(claim, NeverReuses) else [a, claim.b])):
        return ClaimVerdict("unknown", "regions or branches that decide apart are not compared", ())
    one = settled(a)
    other = None if isinstance(claim, NeverReuses) else settled(claim.b)
    both = [one] if other is None else [one, other]
    usable = [grid for grid in grids if not any(run_problems(bound, grid) for bound in both)]
    runs = tuple(grid.steps for grid in usable)
    if not usable:
        return ClaimVerdict("unknown", "no run of these numbers of steps is possible", runs)
    if other is not None:
        if isinstance(claim, Implies) and one.ir.regions != other.ir.regions and _by_share(one.ir, other.ir):
            return ClaimVerdict("unknown", "which blocks a share of the depth is depends on the model", runs)
        differs = _sections(one.ir, other.ir) if isinstance(claim, Equivalent) else _blocks(one.ir, other.ir)
        if differs:
            return ClaimVerdict("refuted", differs, runs)
    against = [(grid, found) for grid in usable if (found := _against(one, other, claim, grid)) is not None]
    if not against:
        return ClaimVerdict("proved", _scope(both), runs)
    for _, found in against:
        if found.certain:
            return ClaimVerdict("refuted", found.certain, runs)
    for grid, _ in against[:: max(1, len(against) // MOST_GRIDS)]:
        steps = range(claim.first, claim.last + 1) if isinstance(claim, NeverReuses) else range(grid.steps)
        shown = witness(both, grid, lambda actions: _broken(claim, actions), steps)
        if shown is not None:
            return ClaimVerdict("refuted", _told(claim, shown), runs, shown)
    return ClaimVerdict("unknown", _why(both, against[0][1].step, against[0][0]), runs)


@dataclass(frozen=True, slots=True)
class _Against:
    """The first step at which the claim may fail. certain: why it does, "" where that is not known."""

    step: int
    certain: str = ""


def _against(a: BoundPolicy, b: BoundPolicy | None, claim: Claim, grid: Grid) -> _Against | None:
    """What one grid says against the claim; None where it says nothing."""
    match claim:
        case NeverReuses(first, last):
            decided = [tuple(found.values()) for found in steps_of(a, grid, NOTHING)]
            steps = range(first, min(last + 1, grid.steps))
            step = next((s for s in steps if not all(d.compute for d in decided[s])), None)
            if step is None:
                return None
            settled_before = all(len(found) == 1 for found in decided[: step + 1])
            if settled_before and _always_parts(a, decided[step][0]):
                return _Against(step, f"step {step} of {grid.steps} reuses a share of the tokens of every large chunk")
            return _Against(step)
        case Implies() | Equivalent():
            assert b is not None
            found = Two(a, b, grid, NOTHING).steps()
            open_ = ((s, all_of) for s, all_of in enumerate(found) if any(_open(claim, f) for f in all_of))
            return next((_Against(s, _other_stand_in(s, all_of, grid)) for s, all_of in open_), None)
        case _:
            assert_never(claim)


def _always_parts(bound: BoundPolicy, decision: Decision) -> bool:
    """The rule in force reuses a share of the tokens whatever is measured."""
    rule = bound.ir.phases[decision.phase].rule
    return (
        decision.compute is None
        and isinstance(rule, ir.Top)
        and isinstance(rule.share, ir.Const)
        and rule.share.value < 1
    )


def _open(claim: Claim, found: Linked) -> bool:
    return not found.within or (isinstance(claim, Equivalent) and not found.equal)


def _other_stand_in(step: int, found: Sequence[Linked], grid: Grid) -> str:
    """Why both give other results at a step at which it is known that both reuse; "" where that is not known."""
    if not all(one.a.compute is False and one.b.compute is False and not one.standing for one in found):
        return ""
    return f"both reuse step {step} of {grid.steps}, and what stands in is not the same"


def _broken(claim: Claim, actions: Actions) -> bool:
    match claim:
        case Implies():
            return tuple(actions) == ("reuse", "compute")
        case Equivalent():
            return actions[0] != actions[1]
        case NeverReuses():
            return actions[0] == "reuse"
        case _:
            assert_never(claim)


def _told(claim: Claim, shown: Witness) -> str:
    at = f"at step {shown.step} of a run of {shown.steps} steps"
    match claim:
        case NeverReuses():
            return f"it reuses {at}"
        case Implies() | Equivalent():
            does = [
                {"compute": "computes", "reuse": "reuses"}[one[-1]] for one in shown.actions if one[-1] != "dynamic"
            ]
            return f"{at}, A {does[0]} and B {does[1]}"
        case _:
            assert_never(claim)


def _why(policies: Iterable[BoundPolicy], step: int, grid: Grid) -> str:
    """Why neither a proof nor a counterexample was found."""
    rules = [phase.rule for bound in policies for phase in bound.ir.phases]
    parts = any(isinstance(r, ir.Top) or (isinstance(r, ir.Reuse) and r.max_reused is not None) for r in rules)
    chosen = "; tokens are chosen against each other, which no schedule of alike tokens shows" if parts else ""
    return f"what is measured decides step {step} of a run of {grid.steps} steps, and no schedule was found{chosen}"


def _scope(policies: Iterable[BoundPolicy]) -> str:
    if any(reads_noise_level(bound.ir) for bound in policies):
        return "it holds on the flow-matching grids of these runs: a rule or a phase reads the timestep or sigma"
    return "it holds whatever is measured, on every grid"


def _sections(a: ir.PolicyIR, b: ir.PolicyIR) -> str:
    """Which other declarations differ; "" where none does."""
    if same_results(a, b):
        return ""
    pairs = {"layers": (a.regions, b.regions), "chunks": (a.chunks, b.chunks), "branches": (a.branches, b.branches),
             "cache": (a.cache, b.cache)}  # fmt: skip
    return f"their {' and '.join(name for name, (one, other) in pairs.items() if one != other)} differ"


def _blocks(a: ir.PolicyIR, b: ir.PolicyIR) -> str:
    """A model on which A reuses a block that B always computes; "" where there is none, or A reuses nothing."""
    if a.regions == b.regions or all(isinstance(phase.rule, ir.Compute) for phase in a.phases):
        return ""
    for depth in range(1, DEEPEST + 1):
        reused = _reused(a, depth)
        alone = sorted(reused - _reused(b, depth))
        if alone:
            block, part = alone[0]
            whole = {(block, each) for each in ir.SUBLAYERS} <= reused
            what = f"block {block}" if whole else f"the `{part}` of block {block}"
            return f"on a model of {depth} blocks, A reuses {what}, which B always computes"
    return ""


def _by_share(*policies: ir.PolicyIR) -> bool:
    """Some region's blocks are a share of the depth."""
    places = [region.where for policy in policies for region in policy.regions]
    ranges = [blocks for place in places if (blocks := blocks_of(place)) is not None]
    return any(isinstance(end, float) for blocks in ranges for end in (blocks.first, blocks.last))


def _reused(policy: ir.PolicyIR, depth: int) -> set[tuple[int, ir.SublayerName]]:
    """The sublayers of the blocks that some region keeps."""
    found: set[tuple[int, ir.SublayerName]] = set()
    for region in policy.regions:
        blocks, part = blocks_of(region.where), part_of(region.where)
        first, last = 0, depth - 1
        if blocks is not None:
            ends = block_bounds(blocks, depth)
            first, last = max(ends[0], 0), min(ends[1], depth - 1)
        parts = ir.SUBLAYERS if part is None else (part,)
        found |= set(product(range(first, last + 1), parts)) if region.keep is not None else set()
    return found
