"""How two policies differ on one run: at which steps, from which one on and why, and in how much they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mccompile import ir
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.cells import PlannedAction
from mccompile.policy.evaluate import Grid
from mccompile.policy.reasons import StepReason, reasons
from mccompile.policy.rules import Static
from mccompile.policy.settled import settled
from mccompile.policy.together import Linked, Two, stand_ins_by_step

Relation = Literal["alike", "may differ", "differ"]
DeclaredSection = Literal["layers", "chunks", "branches", "cache"]


@dataclass(frozen=True, slots=True)
class StepPair:
    """One own step of a chunk under both policies.

    relation: `alike` is proved, `differ` is certain, and between them data decides.
    """

    relation: Relation
    a: StepReason
    b: StepReason


@dataclass(frozen=True, slots=True)
class StepsComputed:
    """Steps of a chunk that are computed, at least and at most; data decides between them."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Difference:
    """steps: all own steps of a chunk. work: of both. sections: other declarations that differ.

    first: the first step that is not alike, None where there is none. change: computed steps of B against those of A;
    steps that are alike count as the same, whatever they do.
    """

    steps: tuple[StepPair, ...]
    first: int | None
    work: tuple[StepsComputed, StepsComputed]
    change: StepsComputed
    sections: tuple[DeclaredSection, ...]


def difference(a: BoundPolicy, b: BoundPolicy, grid: Grid, static: Static) -> Difference:
    """The difference on a grid that both policies can run on (`planner.run_problems`).

    static: what is known of the static sources of a model; it has the tables of both policies.
    """
    one, other = settled(a), settled(b)
    why = reasons(a, grid, static), reasons(b, grid, static)
    linked = Two(one, other, grid, static).until_apart()
    stands = [stand_ins_by_step(bound, grid, static) for bound in (one, other)]
    steps = []
    for step, (first, second) in enumerate(zip(*why, strict=True)):
        parted = step >= len(linked) or _apart(linked[step])
        relation = _relation(first.action, second.action, parted)
        both_reuse = first.action == second.action == "reuse"
        if both_reuse and stands[0][step] != stands[1][step]:
            relation = "differ"
        steps.append(StepPair(relation, first, second))
    apart = (step for step, pair in enumerate(steps) if pair.relation != "alike")
    pairs = [pair for pair in steps if pair.relation != "alike"]
    first_work, second_work = _work([pair.a for pair in pairs]), _work([pair.b for pair in pairs])
    change = StepsComputed(second_work.least - first_work.most, second_work.most - first_work.least)
    work = _work(why[0]), _work(why[1])
    return Difference(tuple(steps), next(apart, None), work, change, _sections(one.ir, other.ir))


def _apart(linked: Sequence[Linked]) -> bool:
    return not all(one.equal for one in linked)


def _relation(a: PlannedAction, b: PlannedAction, parted: bool) -> Relation:
    if "dynamic" in (a, b):
        return "may differ" if parted else "alike"
    return "alike" if a == b else "differ"


def _work(steps: Sequence[StepReason]) -> StepsComputed:
    certain = sum(step.action == "compute" for step in steps)
    return StepsComputed(certain, certain + sum(step.action == "dynamic" for step in steps))


def _sections(a: ir.PolicyIR, b: ir.PolicyIR) -> tuple[DeclaredSection, ...]:
    """The declarations outside of the phases that differ."""
    pairs: tuple[tuple[DeclaredSection, object, object], ...] = (
        ("layers", a.regions, b.regions), ("chunks", a.chunks, b.chunks), ("branches", a.branches, b.branches),
        ("cache", a.cache, b.cache),
    )  # fmt: skip
    return tuple(name for name, one, other in pairs if one != other)
