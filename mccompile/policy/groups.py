"""Regions of one name decide together, apart from all others. To each group, the policy is one with a single decision.

before: `phase late { front: compute every 2 steps }`; the regions are named `front`, or have no name
after:  for the group `front`, `phase late { compute every 2 steps }`; for the group "", `phase late { compute }`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mccompile import ir
from mccompile.policy.bind import BoundPolicy

ALL = ""
"""The group of the regions without a name."""


def group_of(region: ir.Region) -> str:
    """The group that a kept region belongs to."""
    return region.name or ALL


def groups(policy: ir.PolicyIR) -> tuple[str, ...]:
    """The groups of the kept regions, in order of depth; at least one."""
    return tuple(dict.fromkeys(group_of(region) for region in policy.regions if region.keep is not None)) or (ALL,)


def policy_of(policy: ir.PolicyIR, group: str) -> ir.PolicyIR:
    """The policy as one group sees it: in each phase its own rule, or that of all regions."""
    if not any(phase.regions for phase in policy.phases):
        return policy
    return replace(policy, phases=tuple(_phase_of(phase, group) for phase in policy.phases))


def policies(policy: ir.PolicyIR) -> Mapping[str, ir.PolicyIR]:
    """The policy as each of its groups sees it."""
    return {group: policy_of(policy, group) for group in groups(policy)}


def bounds_of(bound: BoundPolicy) -> Mapping[str, BoundPolicy]:
    """The bound policy as each of its groups sees it."""
    return {group: replace(bound, ir=own) for group, own in policies(bound.ir).items()}


def _phase_of(phase: ir.Phase, group: str) -> ir.Phase:
    own = next((one.rule for one in phase.regions or () if one.region == group), phase.rule)
    return replace(phase, rule=own, regions=None)
