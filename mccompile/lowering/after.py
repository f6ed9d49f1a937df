"""Shows what one pass did: the graphs that it left, and the arguments and operators that they gained and lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mccompile import ir
from mccompile.capture.part import Part
from mccompile.capture.types import CapturedModel
from mccompile.diagnostics.diagnostic import nearest
from mccompile.lowering.emit import function, shown_operator
from mccompile.lowering.errors import UnknownPass
from mccompile.lowering.passes import APPROXIMATE, EXACT
from mccompile.lowering.pipeline import PassStep, Pieces, run_passes

PASSES = (*EXACT, *APPROXIMATE)


def place_of(name: str) -> int:
    """Returns the place of a pass among all passes. Raises UnknownPass (MC0506)."""
    names = [p.name for p in PASSES]
    if name not in names:
        raise UnknownPass(name, nearest(name, names), names)
    return names.index(name)


def steps_of(name: str, captured: CapturedModel, policy: ir.PolicyIR, proved: frozenset[str]) -> tuple[PassStep, ...]:
    """Runs all passes up to this one, and returns what it did to each part. Raises UnknownPass (MC0506)."""
    upto = PASSES[: place_of(name) + 1]
    return tuple(s for s in run_passes(upto, Pieces.of(captured, policy, proved)) if s.name == name)


def show_steps(name: str, policy: str, steps: Iterable[PassStep]) -> str:
    """Writes the steps of a pass: for each part the differences and the graphs, or why the pass refused it."""
    lines = [line for step in steps for line in _step(step)]
    return "\n".join(lines or [f"pass {name}: policy {policy} does not ask for it"]) + "\n"


def _step(step: PassStep) -> Iterator[str]:
    title = f"pass {step.name}, part {step.place[0]} {step.place[1]}"
    if step.refusal is not None:
        yield f"{title}: refused, {step.refusal.site}: {step.refusal.reason}"
        return
    yield title
    for place, part in step.after.items():
        if place == step.place:
            yield from _changes("takes", step.before.takes, part.takes)
            yield from _changes("gives", step.before.gives, part.gives)
            yield from _changes("operator", operators(step.before), operators(part))
        else:
            yield f"  makes part {place[0]} {place[1]}"
    for place, part in step.after.items():
        yield from ("", *written(f"{place[0]}_{place[1]}", part))


def _changes(what: str, before: Iterable[object], after: Iterable[object]) -> Iterator[str]:
    """Yields one line for each kind of thing that there is more or less of than before."""
    old, new = Counter(map(str, before)), Counter(map(str, after))
    for sign, more in (("-", old - new), ("+", new - old)):
        for name, count in more.items():
            yield f"  {sign} {what} {name}" + (f" ({count} times)" if count > 1 else "")


def operators(part: Part) -> list[str]:
    """Returns the operators of a part's graph, in order."""
    return [shown_operator(n) for n in part.graph.nodes if n.op in ("call_function", "call_method")]


def written(name: str, part: Part) -> Iterator[str]:
    """Writes the part as a Python function. Its parameters say what they take."""
    found = function(name, "", part.module)
    yield f"def {name}("
    for parameter, operand in zip(found.parameters, part.takes, strict=True):
        yield f"    {parameter},  # {operand}"
    yield "):"
    yield from (f"    {line}" for line in found.lines)
    yield f"    return {found.result}"
