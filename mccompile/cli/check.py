"""`mccompile check`: are these policies well-formed and meaningful?"""

from __future__ import annotations

import argparse
import sys

from mccompile.cli.failures import REFUSED
from mccompile.cli.options import POLICY_HELP
from mccompile.cli.terminal import say
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.language.load import load_policy


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("check", help="check policies and show every error", description=__doc__)
    parser.add_argument("policies", nargs="+", metavar="POLICY", help=POLICY_HELP)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """All files are checked, whatever the first one says."""
    status = 0
    for policy in arguments.policies:
        try:
            load_policy(policy)
        except PolicyError as error:
            sys.stderr.write(render(error.diagnostics))
            status = REFUSED
        else:
            say(f"{policy}: ok")
    return status
