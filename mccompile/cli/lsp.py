"""`mccompile lsp`: the language server for editors, over stdin and stdout."""

from __future__ import annotations

import argparse

from mccompile import __version__
from mccompile.generate.errors import OptionRefused


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("lsp", help="the language server for editors", description=__doc__)
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Answers until the editor goes. Raises OptionRefused (MC0705) where pygls is not installed."""
    try:
        from mccompile.lsp.server import build_server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("pygls", "lsprotocol"):
            raise
        raise OptionRefused("lsp", "pygls is not installed", "pip install 'mccompile[lsp]'") from None
    build_server(__version__).start_io()
    return 0
