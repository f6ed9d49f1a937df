"""Looks at runs: metrics, benchmarks, comparisons."""
