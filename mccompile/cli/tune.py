"""`mccompile tune`: from a goal, such as `4x` or `psnr >= 30`, to a policy file in one command."""

from __future__ import annotations

import argparse
from pathlib import Path

from mccompile.cli.explore import INTERRUPTED, add_search, carry_out, goals_of, job_of
from mccompile.cli.options import POLICY_HELP, location, positive


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("tune", help="find the policy file for a goal", description=__doc__)
    parser.add_argument("goal", metavar="GOAL", help="`4x`, `psnr >= 30`, or in the words of `explore --emit`")
    parser.add_argument("--policy", default="motioncache", metavar="POLICY", help=POLICY_HELP)
    parser.add_argument("--trials", type=positive, default=12, metavar="N", help="of the study; default: %(default)s")
    parser.add_argument("--to", type=location, metavar="FILE", help="the policy file; default: in the study's folder")
    add_search(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A search for one goal, and its policy."""
    from mccompile.generate.places import Use, check_places

    job = job_of(arguments, (arguments.policy,), goals_of([arguments.goal]), arguments.trials)
    if arguments.to is not None:
        check_places([Use(f"--to {arguments.to}", arguments.to)], [Use("--policy", Path(arguments.policy))])
    found = carry_out(job, arguments.to, arguments.store)
    return INTERRUPTED if found.interrupted else 0
