"""Errors as data, the texts that they point into, and how they are shown."""
