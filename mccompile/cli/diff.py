"""`mccompile diff`: where two policies decide differently, why, and what that means for the work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import assert_never

from mccompile import ir
from mccompile.cli.options import MOST_STEPS, POLICY_HELP, add_two_parameters, up_to
from mccompile.cli.planned_run import bound_policy, run_of
from mccompile.cli.steps_told import compared
from mccompile.cli.terminal import aligned, say
from mccompile.generate.errors import OptionRefused
from mccompile.policy.difference import DeclaredSection, Difference, StepPair, StepsComputed, difference
from mccompile.policy.flow import DEFAULT_STEPS
from mccompile.policy.groups import decides_apart
from mccompile.policy.in_words import chunks, kept, regions
from mccompile.policy.reasons import StepReason

JSON_FORMAT = "mccompile diff 1"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("diff", help="compare what two policies decide", description=__doc__)
    parser.add_argument("a", metavar="A", help=POLICY_HELP)
    parser.add_argument("b", metavar="B", help="the policy that A is compared with")
    parser.add_argument("--model", metavar="NAME", help="whose grid and values: `embedded` or a diffusers folder")
    parser.add_argument("--steps", type=up_to(MOST_STEPS), metavar="N", help=f"of the run; default: {DEFAULT_STEPS}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_two_parameters(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The difference as a table, or as one JSON object."""
    a = bound_policy(arguments.a, arguments.parameters_a)
    b = bound_policy(arguments.b, arguments.parameters_b)
    if any(decides_apart(bound.ir) for bound in (a, b)):
        apart = "regions or branches that decide apart are not compared"
        raise OptionRefused("diff", apart, "compare their plans: explain")
    run = run_of(arguments, [a, b])
    found = difference(a, b, run.grid, run.static)
    names = _names(a.ir.name, b.ir.name)
    if arguments.json:
        say(json.dumps({"format": JSON_FORMAT, "a": arguments.a, "b": arguments.b, **asdict(found)}))
        return 0
    for line in table(found, names):
        say(line)
    for section in found.sections:
        say(f"\nTheir {section} differ:")
        for name, policy in zip(names, (a.ir, b.ir), strict=True):
            for line in _declared(section, policy):
                say(f"  {name}: {line}")
    return 0


def _names(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a != b else (f"A ({a})", f"B ({b})")


def table(found: Difference, names: tuple[str, str]) -> Iterator[str]:
    """Lines: the work, the first difference with its reasons, and all steps in stretches."""
    steps = len(found.steps)
    yield from aligned([("steps computed", *names), ("", *(_work(work, steps) for work in found.work))])
    yield f"change in work  {_change(found)}"
    yield ""
    if found.first is None:
        yield f"Both decide alike in all {steps} steps."
    else:
        pair = found.steps[found.first]
        yield f"First difference: step {found.first}{'' if pair.relation == 'differ' else ', if the data decides so'}"
        why = [(name, *_why(one)) for name, one in zip(names, (pair.a, pair.b), strict=True)]
        yield from (f"  {line}" for line in aligned(why))
        yield ""
        yield from aligned([("steps", *names, ""), *_stretches(found.steps)])


def _declared(section: DeclaredSection, policy: ir.PolicyIR) -> list[str]:
    """What a policy says in a section, in words."""
    match section:
        case "layers":
            return list(regions(policy))
        case "chunks" | "branches":
            return list(chunks(policy))
        case "cache":
            return list(kept(policy.cache)) or ["keeps everything in the model's dtype, on its device"]
        case _:
            assert_never(section)


def _work(work: StepsComputed, steps: int) -> str:
    return f"{work.least} of {steps}" if work.least == work.most else f"{work.least} to {work.most} of {steps}"


def _change(found: Difference) -> str:
    """Computed steps of the second policy against those of the first one."""
    low, high = found.change.least, found.change.most
    if low != high:
        return f"{low:+d} to {high:+d} steps computed: data decides"
    if not low:
        return "none: as many steps are computed"
    sure = found.work[0].least == found.work[0].most
    return f"{low:+d} steps computed" + (f" ({low / found.work[0].most:+.0%})" if sure else "")


def _why(one: StepReason) -> tuple[str, str, str]:
    return f"phase {one.phase or '?'}", one.action, one.why + compared(one)


def _stretches(steps: tuple[StepPair, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Neighbouring steps at which the same holds, as one row."""
    start = 0
    for step in range(1, len(steps) + 1):
        if step < len(steps) and _row(steps[step]) == _row(steps[start]):
            continue
        where = str(start) if start == step - 1 else f"{start}..{step - 1}"
        yield (where, *_row(steps[start]))
        start = step


def _row(pair: StepPair) -> tuple[str, str, str]:
    first, second = (f"{one.phase or '?'}: {one.action}" for one in (pair.a, pair.b))
    return first, second, pair.relation
