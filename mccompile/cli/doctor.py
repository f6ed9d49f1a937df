"""`mccompile doctor`: what was found, proved and refused of a model, and what each shipped policy comes to on it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mccompile.cli.failures import SETUP_FAILED
from mccompile.cli.terminal import aligned
from mccompile.cli.words import by_place

if TYPE_CHECKING:
    from mccompile.api import Prepared


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("doctor", help="what a model allows, and what each policy comes to", description=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="`embedded` or a diffusers folder")
    parser.add_argument("--module", metavar="FILE.py:FUNCTION", help="a module of your own and its two example calls")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Two tables: the findings, and a line for each policy. Of two transformers that differ, each has its own."""
    if (arguments.model is None) == (arguments.module is None):
        sys.stderr.write("give either a MODEL or --module FILE.py:FUNCTION\n")
        return SETUP_FAILED
    from mccompile import api
    from mccompile.generate.doctor import parts_of, prepare_module
    from mccompile.generate.load import find_folder, load_pipeline
    from mccompile.generate.placement import Placement

    if arguments.module is not None:
        prepared = prepare_module(arguments.module)
    else:
        place = Placement.of("cpu", None, False)
        prepared = api.prepare(load_pipeline(find_folder(arguments.model), place, hollow=True))
    sys.stdout.write(by_place({place: _told(own) for place, own in parts_of(prepared).items()}))
    return 0


def _told(prepared: Prepared) -> str:
    from mccompile.generate.doctor import effects, findings

    rows = [("policy", "decides per", ""), *((e.policy, e.decides, e.why) for e in effects(prepared))]
    return "\n".join((*aligned(findings(prepared.model)), "", *aligned(rows), ""))
