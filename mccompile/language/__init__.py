"""Turns the text of a policy into IR: grammar, syntax tree, checker, formatter. It does not import torch."""
