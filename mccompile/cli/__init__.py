"""The verbs of the command line. `main` parses, runs one verb, and shows each of our errors as a diagnostic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mccompile.cli.failures import SETUP_FAILED
from mccompile.cli.failures import report as report_failure
from mccompile.cli.options import settle_dtype
from mccompile.cli.parser import build_parser
from mccompile.diagnostics.failure import Failure

INTERRUPTED = 130  # what shells give for SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit status.

    0: done. 1: the policy or the model was refused, or a comparison failed. 2: the command line, or a file or a
    model that it names, is no good.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = build_parser().parse_args(words, argparse.Namespace(words=tuple(words)))
    try:
        settle_dtype(arguments)
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        return SETUP_FAILED
    except Failure as error:
        return report_failure(error)
