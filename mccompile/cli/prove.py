"""`mccompile prove`: is a claim about policies true for every run, and if not, which run shows it?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import assert_never

from mccompile import ir
from mccompile.cli.failures import REFUSED
from mccompile.cli.options import POLICY_HELP, add_two_parameters, step_range
from mccompile.cli.planned_run import bound_policy
from mccompile.cli.terminal import aligned, say
from mccompile.generate.errors import OptionRefused
from mccompile.language.types import source_words
from mccompile.policy.flow import flow_grid
from mccompile.policy.prove import Claim, ClaimVerdict, Equivalent, Implies, NeverReuses, prove
from mccompile.policy.settled import remembered
from mccompile.policy.witness import Witness

DEFAULT_RUNS = range(1, 31)
JSON_FORMAT = "mccompile prove 1"
_CLAIMS = ("implies", "equivalent", "never-reuses")


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("prove", help="prove a claim about policies, or refute it", description=__doc__)
    parser.add_argument("a", metavar="A", help=POLICY_HELP)
    parser.add_argument("claim", choices=_CLAIMS, help="what is claimed of A")
    parser.add_argument("of", nargs="+", metavar="B|steps", help="the other policy; or, of never-reuses, `steps 0..4`")
    parser.add_argument(
        "--steps", type=step_range, default=DEFAULT_RUNS, metavar="N..M", help="lengths of the runs; default: 1..30"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_two_parameters(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 where the claim is proved, 1 where it is refuted or not known."""
    if 0 in arguments.steps:
        raise OptionRefused("--steps 0", "a run has at least one step", "begin the range with 1")
    a = bound_policy(arguments.a, arguments.parameters_a)
    found = prove(a, _claim(arguments), [flow_grid(n) for n in arguments.steps])
    if arguments.json:
        say(json.dumps(_object(arguments, found)))
    else:
        for line in _lines(found):
            say(line)
    return 0 if found.outcome == "proved" else REFUSED


def _claim(arguments: argparse.Namespace) -> Claim:
    words: list[str] = arguments.of
    if arguments.claim == "never-reuses":
        try:
            steps = step_range(words[1]) if len(words) == 2 and words[0] in ("step", "steps") else None
        except argparse.ArgumentTypeError:
            steps = None
        if steps is None:
            given = " ".join(words)
            raise OptionRefused(f"never-reuses {given}", "it names no steps", "write `never-reuses steps 0..4`")
        if arguments.parameters_b:
            raise OptionRefused("--set-b", "there is no policy B in this claim", "use --set-a")
        return NeverReuses(steps[0], steps[-1])
    if len(words) != 1:
        raise OptionRefused(f"{arguments.claim} {' '.join(words)}", "it names no single policy", "name one policy")
    b = bound_policy(words[0], arguments.parameters_b)
    return Implies(b) if arguments.claim == "implies" else Equivalent(b)


def _lines(found: ClaimVerdict) -> Iterator[str]:
    yield f"{found.outcome}: {found.reason}"
    if found.outcome == "proved":
        yield f"looked at: {_runs(found.runs)}"
    if found.shown is not None:
        yield ""
        yield from aligned(list(_schedule(found.shown)), frozenset({0}))


def _runs(runs: tuple[int, ...]) -> str:
    if runs == tuple(range(runs[0], runs[-1] + 1)):
        return f"runs of {runs[0]} to {runs[-1]} steps" if len(runs) > 1 else f"runs of {runs[0]} steps"
    return f"runs of {', '.join(map(str, runs))} steps"


def _schedule(shown: Witness) -> Iterator[tuple[str, ...]]:
    """The schedule up to the step that shows it: what is measured, and what each policy does."""
    policies = ("A", "B")[: len(shown.actions)]
    yield ("step", *(_measured(expr) for expr, _ in shown.values), *policies)
    for step in range(shown.step + 1):
        values = (f"{of[step]:g}" if step or remembered(expr) else "-" for expr, of in shown.values)
        yield (str(step), *values, *(actions[step] for actions in shown.actions))


def _at(of: ir.SourceRef, moment: ir.PastMoment | None) -> str:
    """A source at a moment, as the language writes it; a filter without its gain."""
    name = source_words(of) if of.gain is None else f"filter({source_words(of)})"
    match moment:
        case None:
            return name
        case ir.PastMoment("step", _):
            return f"before({name})"
        case ir.PastMoment(_, n):
            return f"kept({name})" if n == 1 else f"kept({name}, {n})"
        case _:
            assert_never(moment)


def _measured(expr: ir.Expr) -> str:
    match expr:
        case ir.Change(_, of) if remembered(expr):
            return source_words(of)
        case ir.Change(distance, of, "zero", _, _, a):
            return f"{'deviation' if distance == 'deviation' else 'magnitude'}({_at(of, a)})"
        case ir.Change(distance, of, "step", _, _, None):
            return f"{distance}({_at(of, None)})"
        case ir.Change(distance, of, "step" | "compute" as since, _, n, a):
            return f"{distance}({_at(of, a)}, {_at(of, ir.PastMoment(since, n or 1))})"
        case ir.FrameDiff(of, _, a):
            return f"frame_diff({_at(of, a)})"
        case ir.Similarity(of, _):
            return f"similarity({_at(of, None)})"
        case _:
            raise TypeError(expr)


def _object(arguments: argparse.Namespace, found: ClaimVerdict) -> dict[str, object]:
    shown = found.shown
    schedule = None
    if shown is not None:
        measured = [{"what": _measured(e), "values": list(values)} for e, values in shown.values]
        schedule = {"steps": shown.steps, "step": shown.step, "measured": measured, "actions": list(shown.actions)}
    claim = " ".join([arguments.a, arguments.claim, *arguments.of])
    return {
        "format": JSON_FORMAT, "claim": claim, "outcome": found.outcome, "reason": found.reason,
        "runs": list(found.runs), "schedule": schedule,
    }  # fmt: skip
