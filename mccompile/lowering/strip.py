"""Drops inputs that nothing reads and results that nothing wants.

before: takes a, b, c; gives a + c and b; wanted are all but b
after:  takes a, c; gives a + c
refuses when: every input is read and every result is wanted
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mccompile.capture.part import Part, Result
from mccompile.capture.types import Refusal
from mccompile.lowering.draft import Draft, Rewritten


def strip_unused(part: Part, wanted: frozenset[Result] | None) -> Rewritten | Refusal:
    """Leaves the results `wanted` alone (None: all), without dead operators and unread inputs."""
    draft = Draft(part)
    if wanted is not None:
        draft.gives = {r: v for r, v in draft.gives.items() if r in wanted}
    first = draft.part()
    slim = Draft(first)
    for operand, holder in list(slim.takes.items()):
        if not holder.users and holder not in slim.gives.values():
            slim.drop(operand)
    if slim.takes.keys() == draft.takes.keys() and len(slim.gives) == len(part.gives):
        return Refusal("inputs and results", "all of them are used")
    return Rewritten(slim.part())


def stripped(part: Part, wanted: frozenset[Result] | None = None) -> Part:
    """Returns the part without what is unused, or the part itself if all is used."""
    match strip_unused(part, wanted):
        case Rewritten(slim):
            return slim
        case Refusal():
            return part


def cut(part: Part, gives: Mapping[Result, fx.Node], writes: bool = True) -> Part:
    """Cuts out the part of `part` that gives these values of its graph alone.

    writes: operators that write to arguments are kept. They may go if nothing wanted is made of what they write to.
    """
    draft = Draft(part)
    draft.gives = {r: draft.copies[n] for r, n in gives.items()}
    for node in [] if writes else reversed(list(draft.graph.nodes)):
        if node.op == "call_function" and not node.users and node not in draft.gives.values():
            draft.graph.erase_node(node)
    return stripped(draft.part())
