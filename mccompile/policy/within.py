"""What is foreseen of layers within the whole model: where its output stands in, none of them runs.

The checker has seen to it that in such a branch these layers reuse nothing of their own (MC0275).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mccompile import ir
from mccompile.policy.cells import Cell, Plan
from mccompile.policy.facts import model_region
from mccompile.policy.groups import View, group_of, views
from mccompile.policy.reasons import StepReason

STANDS_IN = "the model's output stands in"
"""Why layers within the model, which would be computed, do not run."""


def plans_within(policy: ir.PolicyIR, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans of all views, by name, with those of layers within the model as they run."""
    found = dict(plans)
    for name, outer in _around(policy).items():
        pairs = zip(plans[name].cells, plans[outer].cells, strict=True)
        found[name] = replace(plans[name], cells=tuple(_cell(own, around) for own, around in pairs))
    return found


def reasons_within(
    policy: ir.PolicyIR, reasons: Mapping[str, tuple[StepReason, ...]]
) -> dict[str, tuple[StepReason, ...]]:
    """The reasons of all views, by name, with those of layers within the model as they run."""
    found = dict(reasons)
    for name, outer in _around(policy).items():
        pairs = zip(reasons[name], reasons[outer], strict=True)
        found[name] = tuple(_reason(own, around) for own, around in pairs)
    return found


def _around(policy: ir.PolicyIR) -> dict[str, str]:
    """For the view of each group of layers within the model that of the model in the same branch, by name."""
    whole = model_region(policy)
    if whole is None:
        return {}
    group = group_of(whole)
    return {view.name: View(view.branch, group).name for view in views(policy) if view.group != group}


def _cell(own: Cell, around: Cell) -> Cell:
    return own if around.action == "compute" else replace(own, action=around.action, account=around.account)


def _reason(own: StepReason, around: StepReason) -> StepReason:
    if around.action == "compute":
        return own
    why = STANDS_IN if around.action == "reuse" else f"{around.why}: {STANDS_IN}, or not"
    return replace(own, action=around.action, why=why, compared=())
