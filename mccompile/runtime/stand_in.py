"""A module that takes a model's place. It has the model's attributes and signature, and a forward of its own."""

from __future__ import annotations

import inspect
from typing import Literal, assert_never

from torch import nn
from torch._dynamo import OptimizedModule

ExpertSlot = Literal["transformer", "transformer_2"]  # where a pipeline has a transformer
SLOTS: tuple[ExpertSlot, ExpertSlot] = ("transformer", "transformer_2")


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


def slots_of(pipe: object) -> tuple[ExpertSlot, ...]:
    """The places where a pipeline has transformers."""
    found = zip(SLOTS, (getattr(pipe, "transformer", None), getattr(pipe, "transformer_2", None)), strict=True)
    return tuple(slot for slot, part in found if isinstance(part, nn.Module))


def transformer_of(pipe: object, slot: ExpertSlot | None = None) -> nn.Module | None:
    """The transformer in that place; None for the first: `transformer`, or `transformer_2` where it is the only one."""
    first = next(iter(slots_of(pipe)), None)
    match first if slot is None else slot:
        case "transformer":
            found = getattr(pipe, "transformer", None)
        case "transformer_2":
            found = getattr(pipe, "transformer_2", None)
        case None:
            found = None
        case other:
            assert_never(other)
    return found if isinstance(found, nn.Module) else None


def put_transformer(pipe: object, transformer: nn.Module, slot: ExpertSlot | None = None) -> None:
    """Puts a transformer in the place of `transformer_of(pipe, slot)`."""
    match slots_of(pipe)[0] if slot is None else slot:
        case "transformer":
            pipe.transformer = transformer  # type: ignore[attr-defined]
        case "transformer_2":
            pipe.transformer_2 = transformer  # type: ignore[attr-defined]
        case other:
            assert_never(other)
