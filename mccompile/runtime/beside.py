"""The other guidance branch at the same step: its output is what a kept gap is added to.

What cannot be served is computed afresh, and the trace says why: the other branch is called later or not at all, it was
itself not computed, or its chunks are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mccompile.runtime.actions import Action
from mccompile.runtime.clock import Moment
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, GapBase, Held, History, Returned


def served(
    store: BranchStore, group: str, branches: Mapping[str, BranchStore], moment: Moment,
    actions: tuple[tuple[Action, ...], ...], reuses: bool,
) -> tuple[tuple[Action, ...], ...]:
    """The actions of a call, [B][G]; all afresh where the other branch has given nothing that can be used.

    store: of the call's branch; it notes what the other one has given. group: that of the whole model. branches: all of
    the request. reuses: the branch of the call has rules that reuse the gap.
    """  # fmt: skip
    store.beside = found_beside(branches, moment, store) if reuses else None
    if store.beside is None or store.beside.value is not None:
        return actions
    return afresh(actions, moment, store.courses[group].history, store.beside.why)


def returned(results: Sequence[Value], computed: bool) -> Returned:
    """What a call leaves for the other branch. computed: all of its chunks were."""
    (output,) = results
    assert isinstance(output, torch.Tensor)
    return Returned(Held.of(output) if computed else None)


def lose_gap(store: BranchStore, group: str) -> None:
    """After a call: where the other branch had given nothing, no gap is kept either."""
    base, store.beside = store.beside, None
    if base is not None and base.value is None:
        store.courses[group].history.lose(base.why)


def found_beside(branches: Mapping[str, BranchStore], moment: Moment, store: BranchStore) -> GapBase:
    """What the branch beside that of a call has given at its step.

    The branch beside `cond` is `uncond`, that beside any other one is `cond`. Its output is handed over once.
    """
    name = "uncond" if moment.branch == "cond" else "cond"
    other = branches.get(name)
    if other is None or other.row != moment.row or other.returned is None:
        return GapBase(None, f"`{name}` was not called before it")
    held, other.returned = other.returned.output, None
    if held is None:
        return GapBase(None, f"`{name}` was not computed")
    if held.changed():
        return GapBase(None, f"the output of `{name}` was changed")
    if other.window is None or store.window is None or other.window.places != store.window.places:
        return GapBase(None, f"`{name}` has other chunks")
    return GapBase(held.value, "")


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
