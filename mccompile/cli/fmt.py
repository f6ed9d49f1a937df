"""`mccompile fmt`: the one layout of a policy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mccompile.cli.failures import REFUSED
from mccompile.cli.terminal import say
from mccompile.diagnostics.failure import PolicyError
from mccompile.diagnostics.render import render
from mccompile.diagnostics.source import Source
from mccompile.language.fmt import format_policy
from mccompile.language.load import find_policy
from mccompile.language.parse import parse

STDIN = "-"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("fmt", help="format policy files in place", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .policy file, or - for stdin to stdout")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file would change")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Files that do not parse are reported and left alone."""
    changed = refused = False
    for name in arguments.files:
        try:
            source = Source.of_text(sys.stdin.read(), "<stdin>") if name == STDIN else find_policy(Path(name))
            text = format_policy(parse(source))
        except PolicyError as error:
            sys.stderr.write(render(error.diagnostics))
            refused = True
            continue
        differs = source.text != text
        changed |= differs
        if name == STDIN and not arguments.check:
            sys.stdout.write(text)
        elif differs:
            say(f"{name}: {'would change' if arguments.check else 'formatted'}")
        if differs and not arguments.check and name != STDIN:
            _replace(Path(name), text)
    return REFUSED if refused or (changed and arguments.check) else 0


def _replace(path: Path, text: str) -> None:
    from mccompile.generate.errors import OutputRefused
    from mccompile.generate.places import put, reason

    try:
        put(path, lambda draft: draft.write_bytes(text.encode()))
    except OSError as error:
        raise OutputRefused(str(path), reason(error)) from None
