"""The command line's surface. tests/cli/surface.txt freezes it."""

from __future__ import annotations

import argparse
from functools import partial

from mccompile import __version__
from mccompile.cli import (
    bench,
    calibrate,
    check,
    compile,
    diff,
    doctor,
    explain,
    explore,
    fmt,
    generate,
    import_,
    lsp,
    metrics,
    models,
    policies,
    prove,
    replay,
    report,
    serve,
    tune,
    validate,
)

VERBS = (
    check, fmt, explain, diff, prove, import_, policies, models, doctor, validate, generate, compile, replay, report,
    metrics, explore, tune, calibrate, serve, bench, lsp,
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; the parsed arguments carry the verb's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="mccompile", description="A compiler for motion-aware caching in video generators.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"mccompile {__version__}")
    exact = partial(argparse.ArgumentParser, allow_abbrev=False)  # `--step` is no `--steps`
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=exact)  # type: ignore[call-overload]
    for verb in VERBS:
        verb.add(verbs)
    return parser
