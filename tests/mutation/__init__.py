"""Mutation testing: small wrong changes of the code, and whether a test sees each of them."""
