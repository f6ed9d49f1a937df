"""Decides the next call when this one ends, so that no host waits for a device: all that it needs is known by then.

Motion is observed at the end of a step, and the clock knows which step comes next. The next call takes the decision
over if it is the call that was foreseen. Otherwise the decision is dropped, and nothing has happened: a decision
changes the store only when it is taken over (`Decide.finish`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mccompile.policy.bind import BoundPolicy
from mccompile.policy.planner import Plan
from mccompile.runtime.actions import resolve_all
from mccompile.runtime.clock import Moment
from mccompile.runtime.decision import host_rows
from mccompile.runtime.engine import Engine
from mccompile.runtime.layout import Layout
from mccompile.runtime.store import BranchStore, Deciding
from mccompile.runtime.upload import parameters


def decide_ahead(
    engine: Engine, bound: BoundPolicy, fold: bool, moment: Moment, layout: Layout, store: BranchStore, plan: Plan,
    device: torch.device,
) -> Deciding | None:  # fmt: skip
    """The decision of the call after `moment`; None where it is not known which that is, or what it will read."""
    decide, branches = engine.decide, engine.lowered.policy.branches
    follows = branches.share_decision not in (None, moment.branch)
    if decide is None or decide.spec.sources or moment.following is None or follows:
        return None
    if len(moment.following) != layout.chunks:
        return None
    now = replace(moment, row=moment.row + 1, chunks=moment.following, following=None)
    actions = resolve_all(now, store.history, bound, plan, layout.batch)
    if fold and not any(a.kind == "dynamic" for of_sample in actions for a in of_sample):
        return None
    host = host_rows(decide.spec, now, actions, store.states, plan, store.history.computed)
    return decide.start(host, parameters(decide.spec.params, bound, device), {}, store.states, layout, now)
