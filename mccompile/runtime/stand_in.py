"""A module that takes a model's place. It has the model's attributes and signature, and a forward of its own."""

from __future__ import annotations

import inspect

from torch import nn
from torch._dynamo import OptimizedModule


class StandIn(nn.Module):
    """Everything that is not its own is the model's: config, dtype, device and the rest."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.signature = inspect.signature(model.forward)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def arguments_of(self, *args: object, **kwargs: object) -> dict[str, object]:
        """The arguments of a call by the model's names for them."""
        return dict(self.signature.bind(*args, **kwargs).arguments)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model, without what stands in for it and what `torch.compile` put around it."""
    while isinstance(model, StandIn | OptimizedModule):
        model = model.model if isinstance(model, StandIn) else model._orig_mod
    return model


def transformer_of(pipe: object) -> nn.Module | None:
    """The transformer that a pipeline runs: its `transformer`, or `transformer_2` where that is its only one."""
    for found in (getattr(pipe, "transformer", None), getattr(pipe, "transformer_2", None)):
        if isinstance(found, nn.Module):
            return found
    return None


def put_transformer(pipe: object, transformer: nn.Module) -> None:
    """Puts a transformer in the place of `transformer_of(pipe)`."""
    if isinstance(getattr(pipe, "transformer", None), nn.Module):
        pipe.transformer = transformer  # type: ignore[attr-defined]
    else:
        pipe.transformer_2 = transformer  # type: ignore[attr-defined]
