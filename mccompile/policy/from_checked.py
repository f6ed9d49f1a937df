"""Where `load_policy` stood in 0.1.0; scripts that were written then import it from here."""

from mccompile.language.load import load_policy

__all__ = ["load_policy"]
