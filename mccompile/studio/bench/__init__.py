"""Benchmarks that a user runs on a machine of their own: ladder, peers, scaling, overhead."""
