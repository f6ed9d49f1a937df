"""`mccompile policies`: the policies that come with mccompile, or the text of one."""

from __future__ import annotations

import argparse
import sys

from mccompile.cli.terminal import aligned, say
from mccompile.language.load import find_policy
from mccompile.language.parse import parse
from mccompile.resources import shipped_policies


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("policies", help="list the shipped policies, or show one", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="show the text of this policy")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """One line per policy: its name and its first comment."""
    if arguments.name is not None:
        sys.stdout.write(find_policy(arguments.name).text)
        return 0
    for line in aligned([(name, summary(name)) for name in shipped_policies()]):
        say(line)
    return 0


def summary(name: str) -> str:
    """The first comment of a shipped policy, in one line."""
    comments = parse(find_policy(name)).comments
    return comments[0].text.removeprefix("#").strip() if comments else ""
