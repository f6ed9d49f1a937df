"""Configurations of other tools, translated into policies."""
