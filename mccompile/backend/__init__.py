"""Compiles graphs ahead of time to packages, in worker processes. A package is found again by what it was made of."""
