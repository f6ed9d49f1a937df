"""Where `clock_for` stood in 0.1.0; scripts that were written then import it from here."""

from mccompile.pipelines.finding import clock_for

__all__ = ["clock_for"]
