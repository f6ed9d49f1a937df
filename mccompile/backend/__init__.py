"""Ahead-of-time compilation: graphs to packages, in worker processes, found again by what they were made of."""
