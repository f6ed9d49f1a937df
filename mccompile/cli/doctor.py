"""`mccompile doctor`: what was found, proved and refused of a model, and what each shipped policy comes to on it."""

from __future__ import annotations

import argparse
import sys

from mccompile.cli.failures import SETUP_FAILED
from mccompile.cli.terminal import aligned, say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("doctor", help="what a model allows, and what each policy comes to", description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="`embedded` or a diffusers folder")
    parser.add_argument("--module", metavar="FILE.py:FUNCTION", help="a module of your own and its two example calls")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Two tables: the findings, and a line for each policy."""
    if (arguments.model is None) == (arguments.module is None):
        sys.stderr.write("give either a MODEL or --module FILE.py:FUNCTION\n")
        return SETUP_FAILED
    from mccompile import api
    from mccompile.generate.doctor import effects, findings, prepare_module
    from mccompile.generate.load import find_folder, load_pipeline
    from mccompile.generate.placement import Placement

    if arguments.module is not None:
        prepared = prepare_module(arguments.module)
    else:
        place = Placement.of("cpu", None, False)
        prepared = api.prepare(load_pipeline(find_folder(arguments.model), place, hollow=True))
    for line in aligned(findings(prepared.model)):
        say(line)
    say()
    rows = [("policy", "decides per", "")]
    for line in aligned([*rows, *((e.policy, e.decides, e.why) for e in effects(prepared))]):
        say(line)
    return 0
