"""Regions of one name decide together, apart from all others. To each group, the policy is one with a single decision.

before: `phase late { front: compute every 2 steps }`; the regions are named `front`, or have no name
after:  for the group `front`, `phase late { compute every 2 steps }`; for the group "", `phase late { compute }`

A guidance branch with rules of its own, `phase late { uncond: compute every 2 steps }`, sees other rules than the
others. A *view* is what one group decides by in some branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mccompile import ir
from mccompile.language.walk import merges, rule_in, said_by_layers
from mccompile.policy.bind import BoundPolicy

ALL = ""
"""The group of the regions without a name, and the branches without rules of their own."""


@dataclass(frozen=True, slots=True)
class View:
    """What a group of regions decides by in a guidance branch; branch ALL: in those without rules of their own."""

    branch: str
    group: str

    @property
    def name(self) -> str:
        return f"{self.branch} {self.group}".strip()


def group_of(region: ir.Region) -> str:
    """The group that a kept region belongs to."""
    return region.name or ALL


def groups(policy: ir.PolicyIR) -> tuple[str, ...]:
    """The groups of the kept regions, in order of depth; at least one."""
    return tuple(dict.fromkeys(group_of(region) for region in policy.regions if region.keep is not None)) or (ALL,)


def own_branches(policy: ir.PolicyIR) -> tuple[str, ...]:
    """The guidance branches that some phase has rules for, in order of first use."""
    return tuple(dict.fromkeys(one.branch for phase in policy.phases for one in phase.branches or ()))


def views(policy: ir.PolicyIR) -> tuple[View, ...]:
    """All views of a policy: those of the branches without rules of their own first."""
    return tuple(View(branch, group) for branch in (ALL, *own_branches(policy)) for group in groups(policy))


def decides_apart(policy: ir.PolicyIR) -> bool:
    """Regions, blocks or guidance branches of the policy decide apart."""
    return len(views(policy)) > 1 or any(region.each for region in policy.regions)


def view_in(policy: ir.PolicyIR, group: str, branch: str) -> View:
    """The view by which a group decides in the calls of a branch."""
    return View(branch if branch in own_branches(policy) else ALL, group)


def policy_of(policy: ir.PolicyIR, view: View) -> ir.PolicyIR:
    """The policy as one view has it: in each phase its own rule, or that of all regions."""
    if not any(phase.regions or phase.branches for phase in policy.phases):
        return policy
    return replace(policy, phases=tuple(_phase_of(phase, view) for phase in policy.phases))


def policies(policy: ir.PolicyIR) -> Mapping[str, ir.PolicyIR]:
    """The policy as each of its views has it, by the name of the view."""
    return {view.name: policy_of(policy, view) for view in views(policy)}


def bounds_of(bound: BoundPolicy) -> Mapping[str, BoundPolicy]:
    """The bound policy as each of its views has it, by the name of the view."""
    own = policies(bound.ir)
    return {view.name: _bound(bound, own[view.name], view.group) for view in views(bound.ir)}


def bounds_in(bound: BoundPolicy, branch: str) -> Mapping[str, BoundPolicy]:
    """The bound policy as each group of regions has it in the calls of a branch."""
    found = {group: policy_of(bound.ir, view_in(bound.ir, group, branch)) for group in groups(bound.ir)}
    return {group: _bound(bound, own, group) for group, own in found.items()}


def _bound(bound: BoundPolicy, own: ir.PolicyIR, group: str) -> BoundPolicy:
    regions = [region for region in own.regions if group_of(region) == group]
    depths = {region.depth for region in regions}
    depth = depths.pop() if len(depths) == 1 else None
    return replace(bound, ir=own, depth=depth, merges=merges(regions), stand_ins=said_by_layers(regions))


def _phase_of(phase: ir.Phase, view: View) -> ir.Phase:
    return replace(phase, rule=rule_in(phase, view.branch, view.group), regions=None, branches=None)
