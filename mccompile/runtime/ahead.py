"""Decides the next call when this one ends, so that no host waits for a device: all that it needs is known by then.

Motion is observed at the end of a step, and the clock knows which step comes next. The next call takes the decision
over if it is the call that was foreseen. Otherwise the decision is dropped, and nothing has happened: a decision
changes the store only when it is taken over (`Decide.finish`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mccompile.runtime.actions import resolve_all
from mccompile.runtime.decision import host_rows
from mccompile.runtime.step import Step
from mccompile.runtime.store import Deciding
from mccompile.runtime.upload import parameters


def decide_ahead(step: Step, device: torch.device) -> Deciding | None:
    """The decision of the call after a step; None where it is not known which that is, or what it will read."""
    decide, moment, layout, bound, plan = step.decides, step.moment, step.layout, step.bound, step.plan
    branches, history, states = bound.ir.branches, step.course.history, step.course.states
    follows = branches.share_decision not in (None, moment.branch)
    if decide is None or decide.spec.sources or moment.following is None or follows:
        return None
    if len(moment.following) != layout.chunks:
        return None
    now = replace(moment, row=moment.row + 1, chunks=moment.following, following=None)
    actions = resolve_all(now, history, bound, plan, layout.batch)
    if step.fold and not any(a.kind == "dynamic" for of_sample in actions for a in of_sample):
        return None
    host = host_rows(decide.spec, now, actions, states, plan, history.computed, bound.depth)
    return decide.start(host, parameters(decide.spec.params, bound, device), {}, states, layout, now)
