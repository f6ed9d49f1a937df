"""Puts a model into eval mode for a while. Dropout and batch norms are those of inference in all that is derived."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn


def to_eval(model: nn.Module) -> Sequence[nn.Module]:
    """Puts a model into eval mode, and returns those of its modules that were in training mode."""
    found = [module for module in model.modules() if module.training]
    model.eval()
    return found


def to_training(modules: Sequence[nn.Module]) -> None:
    """Puts these modules back into training mode, without those below them."""
    for module in modules:
        module.training = True


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode."""
    trained = to_eval(model)
    try:
        yield
    finally:
        to_training(trained)
