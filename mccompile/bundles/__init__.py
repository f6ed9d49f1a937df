"""Writes a compiled model as one file and reads it. A bundle for another model or machine is refused."""
