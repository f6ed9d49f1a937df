"""`mccompile import`: the policy of another tool's configuration, and what became of every key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mccompile.cli.options import location
from mccompile.cli.terminal import aligned
from mccompile.generate.errors import OutputRefused
from mccompile.generate.places import put, reason
from mccompile.importing.convert import TOOLS, import_config
from mccompile.importing.errors import KeysDenied


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("import", help="make a policy of another tool's configuration", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON, YAML, NAME=VALUE lines, or a call in Python")
    parser.add_argument("--tool", choices=tuple(TOOLS), help="whose it is; default: found by its keys")
    parser.add_argument("--out", type=location, metavar="FILE", help="write the policy there; default: stdout")
    parser.add_argument("--deny", choices=("lost",), help="fail where a key has no equivalent")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The policy on stdout or in a file; the keys on stderr."""
    found = import_config(arguments.file, arguments.tool)
    keys = [(note.fate, note.key, note.note) for note in found.keys]
    sys.stderr.write("\n".join([f"{arguments.file}: a configuration of {found.tool}", *_indented(keys)]) + "\n")
    if arguments.deny and found.lost():
        raise KeysDenied(str(arguments.file), tuple(note.key for note in found.lost()))
    if arguments.out is None:
        sys.stdout.write(found.text)
        return 0
    try:
        put(arguments.out, lambda draft: draft.write_bytes(found.text.encode()))
    except OSError as error:
        raise OutputRefused(str(arguments.out), reason(error)) from None
    return 0


def _indented(keys: Sequence[Sequence[str]]) -> list[str]:
    return [f"  {line}" for line in aligned(keys)] if keys else ["  it has no keys: all is as the tool does it"]
