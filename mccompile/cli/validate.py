"""`mccompile validate`: tries the laws of a policy on a model at small sizes, before a long job."""

from __future__ import annotations

import argparse
import sys

from mccompile.cli.failures import REFUSED, SETUP_FAILED
from mccompile.cli.options import MOST_STEPS, POLICY_HELP, add_parameters, add_place, positive, up_to
from mccompile.cli.planned_run import steps_asked
from mccompile.cli.terminal import aligned, say

STEPS = 12  # of the short runs, where no step mask says how many


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("validate", help="try the laws of a policy on a model", description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="`embedded` or a diffusers folder")
    parser.add_argument("policy", metavar="POLICY", help=POLICY_HELP)
    parser.add_argument("--module", metavar="FILE.py:FUNCTION", help="a module of your own and its two example calls")
    add_parameters(parser)
    parser.add_argument("--steps", type=up_to(MOST_STEPS), metavar="N", help=f"of the runs; default: {STEPS}")
    parser.add_argument("--ar-step", type=int, metavar="N", help="steps by which each chunk lags behind the one before")
    parser.add_argument("--causal-block-size", type=positive, metavar="N", help="latent frames per chunk")
    add_place(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A line for each law; 1 where one does not hold."""
    if (arguments.model is None) == (arguments.module is None):
        sys.stderr.write("give either a MODEL or --module FILE.py:FUNCTION, and a POLICY\n")
        return SETUP_FAILED
    from mccompile.generate.subjects import LawSubject
    from mccompile.generate.validate import validate
    from mccompile.policy.bind import bind
    from mccompile.policy.choosing import load_chosen

    found = load_chosen(arguments.policy, dict(arguments.parameters))
    bind(found.policy, found.numbers)
    steps = steps_asked(arguments.steps, [found.policy], STEPS)
    subject: LawSubject = _pipeline(arguments, steps) if arguments.module is None else _module(arguments, steps)
    verdict = validate(subject, found.policy, found.numbers)
    rows = [("law", "", ""), *((law.name, law.outcome, law.said) for law in verdict.laws)]
    for line in aligned(rows):
        say(line)
    say()
    say(verdict.bound.in_words())
    return 0 if verdict.holds else REFUSED


def _pipeline(arguments: argparse.Namespace, steps: int):  # type: ignore[no-untyped-def]
    from mccompile.generate.load import find_folder, load_pipeline
    from mccompile.generate.placement import Placement
    from mccompile.generate.run import Settings, call_arguments
    from mccompile.generate.subjects import PipelineSubject

    pipe = load_pipeline(find_folder(arguments.model), Placement.of(arguments.device, arguments.dtype, False))
    settings = Settings(ar_step=arguments.ar_step, causal_block_size=arguments.causal_block_size)
    return PipelineSubject.of(pipe, call_arguments(pipe, settings), steps)


def _module(arguments: argparse.Namespace, steps: int):  # type: ignore[no-untyped-def]
    from mccompile.generate.doctor import load_module
    from mccompile.generate.errors import OptionRefused
    from mccompile.generate.subjects import ModuleSubject

    for option in ("ar_step", "causal_block_size", "dtype", "device"):
        if getattr(arguments, option) is not None:
            name = f"--{option.replace('_', '-')}"
            raise OptionRefused(name, "the module and its calls are as your function makes them", "leave it out")
    return ModuleSubject.of(*load_module(arguments.module), steps)
