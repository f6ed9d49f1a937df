"""The other guidance branch at the same step: its output is what a kept gap is added to.

What cannot be served is computed afresh, and the trace says why: the other branch is called later or not at all, it was
itself not computed, or its chunks are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mccompile.runtime.actions import Action
from mccompile.runtime.clock import Moment
from mccompile.runtime.store import Beside, BranchStore, History


def found_beside(branches: Mapping[str, BranchStore], moment: Moment, store: BranchStore) -> Beside:
    """What the branch beside that of a call has given at its step.

    The branch beside `cond` is `uncond`, that beside any other one is `cond`. Its output is handed over once.
    """
    name = "uncond" if moment.branch == "cond" else "cond"
    other = branches.get(name)
    if other is None or other.row != moment.row or other.returned is None:
        return Beside(None, f"`{name}` was not called before it")
    held, other.returned = other.returned.output, None
    if held is None:
        return Beside(None, f"`{name}` was not computed")
    if held.version >= 0 and held.value._version != held.version:
        return Beside(None, f"the output of `{name}` was changed")
    if other.window is None or store.window is None or other.window.places != store.window.places:
        return Beside(None, f"`{name}` has other chunks")
    return Beside(held.value, "")


def afresh(
    actions: Sequence[Sequence[Action]], moment: Moment, history: History, why: str
) -> tuple[tuple[Action, ...], ...]:
    """The actions of a call in which nothing can be reused. The plan did not foresee it."""
    made = []
    for b, of_sample in enumerate(actions):
        row = []
        for time, action in zip(moment.chunks, of_sample, strict=True):
            if action.kind in ("reuse", "dynamic"):
                history.planned[b, time.chunk] = False
                action = replace(action, kind="compute", account=None, why=why)
            row.append(action)
        made.append(tuple(row))
    return tuple(made)
