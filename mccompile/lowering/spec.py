"""What holds for every part, whatever passes have made of it. A part that breaks a rule is an error of ours.

placeholders  are the operands that the part takes, one each
outputs       are the results that it gives, one each
operands      are of the form's own sorts, and every one exists in the model
writes        go to buffers, or to what the graph itself has made
attentions    stand in the graph, and are operators that attend
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import torch
from torch import fx

from mccompile.capture.part import (
    Additive,
    Buffer,
    ChosenKeys,
    Filled,
    Hoisted,
    Index,
    Input,
    KeyWorth,
    Modulated,
    Operand,
    Output,
    Part,
    PerSelection,
    Pick,
    Positions,
    Result,
    RowSource,
    Shared,
    Stream,
    TakenFrom,
    Weight,
)  # fmt: skip
from mccompile.diagnostics.failure import InternalError
from mccompile.lowering.draft import mutates
from mccompile.lowering.hoist import is_attention
from mccompile.lowering.pipeline import OF_BLOCKS, Form, PassStep, Pieces, Place

_TAKES: dict[Form, tuple[type[Operand], ...]] = {
    Form.GATHER: (Index, RowSource),
    Form.MODULATED: (Stream, Shared, Weight),
    Form.PLAIN: (Stream, Shared, Additive, Buffer, Weight),
    Form.ROWS: (
        Stream, Shared, RowSource, Positions, Filled, TakenFrom, Buffer, Weight, PerSelection, ChosenKeys,
        KeyWorth, Pick, Hoisted,
    ),
    Form.ONCE: (Shared, Weight),
    Form.ALLOCATE: (Stream, Shared),
    Form.POSTLUDE: (Stream, Shared, Input),
}
_GIVES: dict[Form, tuple[type[Result], ...]] = {
    Form.GATHER: (Shared, Positions, Pick),
    Form.MODULATED: (Modulated,),
    Form.PLAIN: (Stream,),
    Form.ROWS: (Stream, ChosenKeys),
    Form.ONCE: (Hoisted,),
    Form.ALLOCATE: (Buffer,),
    Form.POSTLUDE: (Output,),
}


class BrokenPart(InternalError):
    """A pass has broken the spec, which is an error of ours. It names the pass, the part, the node and the rule."""

    def __init__(self, name: str, place: Place, node: str, rule: str) -> None:
        super().__init__(f"pass {name} broke the part {place[0]} {place[1]} at `{node}`: {rule}")


def verifying(step: PassStep, pieces: Pieces) -> None:
    """Holds what a pass made against the spec, as a watch for lowering. Raises BrokenPart."""
    for place, part in step.after.items():
        for node, rule in broken(place, part, pieces):
            raise BrokenPart(step.name, place, node, rule)


def broken(place: Place, part: Part, pieces: Pieces) -> Iterator[tuple[str, str]]:
    """Yields the rules that a part breaks, each with the node."""
    form = place[0]
    holders = part.graph.find_nodes(op="placeholder")
    returned = part.graph.output_node().args[0]
    if len(holders) != len(part.takes) or len(set(part.takes)) != len(part.takes):
        names = ", ".join(n.name for n in holders)
        yield names, f"placeholders are the operands that the part takes, one each: it takes {len(part.takes)}"
        return
    if not isinstance(returned, tuple | list) or not len(returned) == len(part.gives) == len(set(part.gives)):
        yield "output", f"outputs are the results that the part gives, one each: it gives {len(part.gives)}"
        return
    for operand, node in zip(part.takes, holders, strict=True):
        if not isinstance(operand, _TAKES[form]):
            yield node.name, f"a {form} part takes no {operand}"
        elif not _exists(operand, place, pieces):
            yield node.name, f"{operand} does not exist in the model"
    for result in part.gives:
        if not isinstance(result, _GIVES[form]):
            yield "output", f"a {form} part gives no {result}"
    yield from _writes(part)
    yield from _attentions(part)


def _exists(operand: Operand, place: Place, pieces: Pieces) -> bool:
    """Says whether a part at this place can be given the operand."""
    captured = pieces.captured
    kind = captured.kinds[place[1]] if place[0] in OF_BLOCKS else None
    match operand:
        case Input(name):
            return name in captured.inputs
        case Stream(name):
            return operand in kind.full.takes if kind else name in captured.exit
        case Shared(name) | Additive(name):
            return Shared(name) in kind.full.takes if kind else name in {p.name for p in captured.shared}
        case RowSource(name):
            return name in {p.name for p in captured.sources}
        case Positions(rows):
            return rows == "video" or rows in captured.row_keys
        case Buffer(name) | ChosenKeys(name):
            return kind is not None and name in {b.name for b in kind.buffers}
        case Weight():
            return kind is not None and operand in kind.full.takes
        case Pick(name):
            return name in {c.name for c in pieces.coarse}
        case Hoisted():
            once = pieces.parts.get((Form.ONCE, place[1]))
            return once is not None and operand in once.gives
        case Index() | PerSelection() | KeyWorth() | Filled() | TakenFrom():
            return True
        case _:
            assert_never(operand)


def _writes(part: Part) -> Iterator[tuple[str, str]]:
    """Yields the operators that write to an operand other than a buffer."""
    others = {n for o, n in part.holders().items() if not isinstance(o, Buffer)}
    for node in part.graph.nodes:
        if node.op == "call_function" and mutates(node):
            target = node.args[0]
            while isinstance(target, fx.Node) and isinstance(target.target, torch._ops.OpOverload):
                if not target.target.is_view:
                    break
                target = target.args[0]
            if target in others:
                yield node.name, "writes go to buffers, or to what the graph itself has made"


def _attentions(part: Part) -> Iterator[tuple[str, str]]:
    """Yields the sites whose node is not there, or does not attend."""
    named = {n.name: n for n in part.graph.nodes}
    for site in part.attentions:
        if site.node not in named or not is_attention(named[site.node]):
            yield site.node, f"attentions stand in the graph: that of {site.path} does not"
