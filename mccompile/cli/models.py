"""`mccompile models`: lists the names that `--model` accepts."""

from __future__ import annotations

import argparse

from mccompile.cli.terminal import aligned, say


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("models", help="list the models that --model takes by name", description=__doc__)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Names, and what else is taken."""
    from mccompile.generate.load import EMBEDDED, cached_pipelines
    from mccompile.models.embedded import EMBEDDED_FOLDER

    rows = [(EMBEDDED, f"ships with mccompile, {EMBEDDED_FOLDER}")]
    rows += [(name, "in the local Hugging Face cache") for name in cached_pipelines()]
    rows.append(("PATH", "any folder in diffusers' format, with a model_index.json"))
    for line in aligned(rows):
        say(line)
    return 0
