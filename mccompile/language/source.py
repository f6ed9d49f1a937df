"""Where `Source` stood in 0.1.0; scripts that were written then import it from here."""

from mccompile.diagnostics.source import Source

__all__ = ["Source"]
