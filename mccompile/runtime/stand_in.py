"""A module that takes a model's place. It has the model's attributes and signature, and a forward of its own."""

from __future__ import annotations

import inspect
from typing import Literal, Self, SupportsIndex, assert_never

from torch import nn
from torch._dynamo import OptimizedModule

ExpertSlot = Literal["transformer", "transformer_2"]  # where a pipeline has a transformer
SLOTS: tuple[ExpertSlot, ExpertSlot] = ("transformer", "transformer_2")


class StandIn(nn.Module):
    """Everything that is not its own is the model's: class, config, modules, weights, settings.

    Whoever looks at it or changes it looks at the model and changes it: `isinstance`, `named_parameters`, `state_dict`,
    `load_state_dict`, an assigned module or setting. Only calls are its own, and hooks that are put on it.
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        self.__dict__["model"] = model
        super().__init__()
        shared = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "training")
        self.__dict__.update({name: vars(model)[name] for name in shared})
        self.signature = inspect.signature(model.forward)

    @property  # type: ignore[misc]
    def __class__(self) -> type[nn.Module]:
        """The model's: diffusers asks for it before it scales, fuses or unloads a LoRA."""
        return type(self.model)

    def __getattr__(self, name: str) -> object:
        if "model" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: object) -> None:
        if self._is_own(name) or not (isinstance(value, nn.Module | nn.Parameter) or _has(vars(self.model), name)):
            object.__setattr__(self, name, value)
        else:
            self.model.__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            object.__delattr__(self, name)
        else:
            self.model.__delattr__(name)

    def _is_own(self, name: str) -> bool:
        """Whether an attribute is this one's and not the model's. While a class sets itself up, all of them are.

        Calls are its own: hooks that diffusers removes leave a `forward` in the model, as if it were a setting.
        """
        return name == "forward" or name in vars(self) or "_set_up" not in vars(self)

    def set_up(self) -> None:
        """From here on, what is assigned is assigned to the model where the model has it."""
        self.__dict__["_set_up"] = True

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of the model."""
        self.__dict__["training"] = mode
        self.model.train(mode)
        return self

    def to(self, *args: object, **kwargs: object) -> Self:
        """Moves or casts the model, by its own rules."""
        self.model.to(*args, **kwargs)
        return self

    def state_dict(self, *args: object, **kwargs: object) -> object:
        """The model's."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: object, **kwargs: object) -> object:
        """Loads into the model."""
        return self.model.load_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        """A copy, or what is pickled, is the user's own model."""
        return self.model.__reduce_ex__(protocol)

    def arguments_of(self, *args: object, **kwargs: object) -> dict[str, object]:
        """The arguments of a call by the model's names for them; those of a `**kwargs` by their own."""
        found = dict(self.signature.bind(*args, **kwargs).arguments)
        parameters = self.signature.parameters.values()
        rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD), None)
        return found if rest is None else found | found.pop(rest, {})


def _has(own: dict[str, object], name: str) -> bool:
    """Whether a module, by its `vars`, has an attribute itself, and not only by its class."""
    return name in own or any(name in own[held] for held in ("_modules", "_parameters", "_buffers"))  # type: ignore[operator]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model, without what stands in for it and what `torch.compile` put around it."""
    while isinstance(model, StandIn | OptimizedModule):
        model = model.model if isinstance(model, StandIn) else model._orig_mod
    return model


def stand_in_of(model: nn.Module | None) -> StandIn | None:
    """What stands in for the user's model, also where `torch.compile` was put around it; None where nothing does."""
    while isinstance(model, OptimizedModule):
        model = model._orig_mod
    return model if isinstance(model, StandIn) else None


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
