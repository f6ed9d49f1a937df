"""`mccompile replay`: runs recorded transformer calls through a compiled policy, and compares them call by call."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mccompile.cli.failures import REFUSED
from mccompile.cli.options import POLICY_HELP, add_backend, add_parameters, location
from mccompile.cli.terminal import say

if TYPE_CHECKING:
    from mccompile.generate.replay import Agreement


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "replay",
        help="replay recorded transformer calls under a policy",
        description=__doc__,
        epilog="Exit status 1 if any mask of computed tokens differs or an output is off by more than 1e-4.",
    )
    parser.add_argument("trace", type=location, metavar="TRACE", help=".safetensors file with its .json beside it")
    parser.add_argument("--policy", metavar="POLICY", help=f"{POLICY_HELP}; default: MotionCache as recorded")
    add_parameters(parser)
    add_backend(parser, "eager")
    parser.add_argument("--no-fold", action="store_true", help="decide in the graph even what a table could")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A line per call and branch, then the verdict."""
    from mccompile.diagnostics.source import Source
    from mccompile.generate.recording import read_recording, rules_of
    from mccompile.generate.replay import build_model, compile_recorded, policy_text, prepare_recorded, replay, verdict
    from mccompile.policy.choosing import load_chosen

    recording = read_recording(arguments.trace)
    settings = f"<settings of {arguments.trace.name}>"
    found = load_chosen(
        arguments.policy or Source.of_text(policy_text(rules_of(recording), recording.frames), settings),
        dict(arguments.parameters),
    )
    model = build_model(recording)
    compiled, clock = compile_recorded(
        recording,
        model,
        prepare_recorded(recording, model),
        found.policy,
        dict(found.numbers),
        backend=arguments.backend,
        fold=not arguments.no_fold,
        deny_refusals=arguments.deny == "refusals",
    )
    for refusal in compiled.refusals:
        say(f"refused {refusal.site}: {refusal.reason}")
    seen = []
    for agreement in replay(recording, compiled, clock):
        say(_line(agreement))
        seen.append(agreement)
    result = verdict(seen)
    say(f"masks agree: {result.agree}/{result.masks}  max error: {result.error:.3g}")
    return 0 if result.passed else REFUSED


def _line(a: Agreement) -> str:
    chunks = " ".join(map(str, a.chunks)) or "none"
    wrong = [str(g) for g, agree in zip(a.chunks, a.agree, strict=True) if not agree]
    differs = f"  MASK DIFFERS in chunk {' '.join(wrong)}" if wrong else ""
    return (
        f"call {a.call:3}  {a.branch:6}  chunks {chunks:8}  "
        f"tokens agree {a.same}/{a.tokens}  max error {a.error:.1e}{differs}"
    )
