"""Where `PolicyError` stood in 0.1.0; scripts that were written then import it from here."""

from mccompile.diagnostics.failure import PolicyError

__all__ = ["PolicyError"]
