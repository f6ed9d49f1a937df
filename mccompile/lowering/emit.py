"""Writes a lowered model as readable Python: every graph that can run, and each kind of block once.

The text is for reading and for reports. It also runs: each function computes what its graph computes.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import jinja2
import torch
from torch import fx
from torch.fx.node import _get_qualified_name

from mccompile.language.builtins import BRANCHES
from mccompile.lowering.draft import mutates
from mccompile.lowering.host import named
from mccompile.lowering.sources import shown
from mccompile.lowering.types import LoweredModel, LoweredRegion

_INFIX: dict[Callable[..., object], str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.eq: "==", operator.ne: "!=", operator.and_: "&", operator.or_: "|",
}  # fmt: skip
_PREFIX: dict[Callable[..., object], str] = {operator.invert: "~", operator.neg: "-"}
_INLINE = 48  # longest text of a value, used once, that is written where it is used


@dataclass(frozen=True, slots=True)
class EmittedFunction:
    """One graph: its name, what it is, its parameters, and its lines."""

    name: str
    about: str
    parameters: tuple[str, ...]
    weights: bool  # whether it reads tensors of the captured module, by name
    lines: tuple[str, ...]
    result: str


def emit(lowered: LoweredModel) -> str:
    """Returns the Python text of all graphs of `lowered`. The same lowering gives the same text."""
    return _template().render(
        policy=lowered.policy.name,
        model=lowered.captured.model_class,
        regions=[_region(s, lowered) for s in lowered.regions],
        sites=[(b.index, b.path, b.kind) for b in lowered.captured.blocks],
        located=[f"{name}: {shown(where.value)} ({where.layout})" for name, where in lowered.located.items()],
        static=sorted(lowered.static),
        refusals=[f"{r.site}: {r.reason}" for r in lowered.refusals],
        functions=[function(name, about, module) for name, module, about in graphs(lowered)],
    )


def of_group(group: str) -> str:
    """Words for a view by its name (policy/groups.py): whose branch and regions; "" for one of all."""
    first, _, rest = group.partition(" ")
    branch, regions = (first, rest) if first in BRANCHES else ("", group)
    return (f" of `{branch}`" if branch else "") + (f" in the regions `{regions}`" if regions else "")


def graphs(lowered: LoweredModel) -> Iterator[tuple[str, fx.GraphModule, str]]:
    """Returns every graph of the lowered model with its name and what it is, in the order of a call."""
    captured, rows = lowered.captured, lowered.rows
    values = ", ".join((*captured.entry, *(p.name for p in captured.shared)))
    yield "prelude", captured.prelude.module, f"User inputs to {values}."
    if rows is not None:
        yield "gather", rows.gather.module, "Rows of the shared values that a selection of tokens needs."
    if lowered.modulated is not None:
        yield "modulated", lowered.modulated.module, "The input of the first attention of block 0."
    for group, decide in lowered.decides.items():
        if decide is None:
            continue
        fed, made = ", ".join(named(decide.host)), ", ".join(slot.name for slot in decide.outputs)
        about = f"Which tokens are computed{of_group(group)}. host [B, K, G]: {fed}. Returns {made}."
        yield f"decide_{group.replace(' ', '_')}" if group else "decide", decide.module, about
    for number, plain in enumerate(lowered.plain):
        yield f"block{number}_plain", plain.module, "A block on all rows."
    for number, partial in enumerate(rows.partial if rows is not None else ()):
        about = "A block on selected rows: their keys and values are written into the buffers, all are attended to."
        yield f"block{number}_partial", partial.module, about
    for number, once in enumerate(rows.once if rows is not None else ()):
        if once is not None:
            yield f"block{number}_once", once.module, "What a block on selected rows takes from the prompt, once."
    if lowered.observe is not None:
        about = f"Late signals, from the region's output: {', '.join(lowered.observe.signals)}."
        yield "observe", lowered.observe.module, about
    yield "postlude", lowered.postlude.module, "Streams to the model's outputs."


def function(name: str, about: str, module: fx.GraphModule) -> EmittedFunction:
    """Writes one graph as a function of its placeholders, and of `weights`: the tensors that it owns, by name."""
    nodes = list(module.graph.nodes)
    pure = not any(mutates(n) for n in nodes)
    written: dict[fx.Node, str] = {}
    lines, result = [], "()"
    for node in nodes:
        if node.op == "placeholder":
            written[node] = node.name
        elif node.op == "output":
            result = _text(node.args[0], written)
        else:
            text = _expression(node, written)
            if node.op == "get_attr" or (pure and len(node.users) == 1 and len(text) <= _INLINE):
                written[node] = text
                continue
            written[node] = node.name
            lines.append(f"{node.name} = {text}" if node.users else text)
    parameters = tuple(n.name for n in nodes if n.op == "placeholder")
    return EmittedFunction(name, about, parameters, any(n.op == "get_attr" for n in nodes), tuple(lines), result)


def _expression(node: fx.Node, written: dict[fx.Node, str]) -> str:
    arguments = [_text(a, written) for a in node.args]
    named = [f"{k}={_text(v, written)}" for k, v in node.kwargs.items()]
    match node.op, node.target:
        case "get_attr", str(name):
            return f'weights["{name}"]'
        case "call_method", str(name):
            return f"{_operand(arguments[0])}.{name}({', '.join([*arguments[1:], *named])})"
        case "call_function", operator.getitem:
            place = node.args[1]
            inner = ", ".join(_text(p, written) for p in place) if isinstance(place, tuple) else arguments[1]
            return f"{_operand(arguments[0])}[{inner}]"
        case "call_function", sign if sign in _INFIX and len(arguments) == 2:
            return f"{_operand(arguments[0])} {_INFIX[sign]} {_operand(arguments[1])}"
        case "call_function", sign if sign in _PREFIX:
            return f"{_PREFIX[sign]}{_operand(arguments[0])}"
        case _:
            return f"{shown_operator(node)}({', '.join([*arguments, *named])})"


def shown_operator(node: fx.Node) -> str:
    """Returns the name of what a node calls."""
    return _short(node.target if isinstance(node.target, str) else _get_qualified_name(node.target))


def _operand(text: str) -> str:
    """Returns `text` as it stands beside an operator."""
    return text if re.fullmatch(r"[\w.]+(\[[^\[\]]*\])?(\.\w+\([^()]*\))*", text) else f"({text})"


def _short(name: str) -> str:
    return re.sub(r"^torch\.ops\.aten\b", "aten", name).removesuffix(".default").replace("_operator.", "operator.")


def _text(value: object, written: dict[fx.Node, str]) -> str:
    match value:
        case fx.Node():
            return written[value]
        case tuple():
            return f"({', '.join(_text(v, written) for v in value)}{',' if len(value) == 1 else ''})"
        case list():
            return f"[{', '.join(_text(v, written) for v in value)}]"
        case slice():
            ends = ["" if v is None else _text(v, written) for v in (value.start, value.stop)]
            return ":".join([*ends, *([] if value.step is None else [_text(value.step, written)])])
        case float() if not math.isfinite(value):
            return f'float("{value}")'
        case torch.device():
            return f'torch.device("{value}")'
        case _:
            return repr(value)


def _region(region: LoweredRegion, lowered: LoweredModel) -> str:
    decided = f"decided as `{region.group}`" if region.group else "decided by the policy"
    kept = f"keep {region.keep}" if region.nearest is None else f"taken from the token nearest by {region.nearest}"
    rule = "always computed" if region.keep is None else f"{decided}, {kept}"
    place = f"blocks {region.first}..{region.last}"
    if any(piece.sublayers for piece in lowered.pieces):
        paths = [lowered.captured.blocks[at].path for at in (region.first, region.last)]
        place = " to ".join(dict.fromkeys(paths))
    return f"{place}: {rule}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mccompile.lowering", "templates"),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("lowered.py.jinja")
