"""Runs a lowered model: the clock, the stores of kept tensors, dispatch, trace events."""
