"""A graph together with its argument list: what each placeholder takes, and what each output gives.

Operands are data, so that nobody counts places: a pass finds a placeholder by what it takes, and the runtime
resolves each operand by `match`. A value keeps its name in the captured graph. The parts of a kind of block use the
names of the block that the kind was cut from; `names_at` (capture/types.py) says what they are called at another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx


@dataclass(frozen=True, slots=True)
class Input:
    """A user input of the model."""

    name: str


@dataclass(frozen=True, slots=True)
class Stream:
    """A value that flows from block to block; in a part by rows, the selected rows of it."""

    name: str


@dataclass(frozen=True, slots=True)
class Shared:
    """A prelude value that blocks and postlude read; in a part by rows, the selected rows of it."""

    name: str


@dataclass(frozen=True, slots=True)
class Additive:
    """A shared boolean mask in the form that attention adds: 0 where it is true, -inf elsewhere."""

    name: str


@dataclass(frozen=True, slots=True)
class RowSource:
    """A prelude value, whole, from which rows are picked."""

    name: str


@dataclass(frozen=True, slots=True)
class Index:
    """The positions of the selected tokens, int64 [n]."""


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of the selected tokens along an axis that holds the rows `rows` (see Port.rows), int64 vector."""

    rows: str


@dataclass(frozen=True, slots=True)
class Filled:
    """The tokens that have results in a call, computed or taken from computed ones, int64 [A]."""


@dataclass(frozen=True, slots=True)
class TakenFrom:
    """For each filled token the place among the selected ones of the token whose results it has, int64 [samples, A]."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Kept keys or values of one attention, by the name of their BufferSpec."""

    name: str


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter, buffer or constant of the model, by the name of its node."""

    name: str


@dataclass(frozen=True, slots=True)
class PerSelection:
    """What a pass needs to know of a selection, made once for each by `make`, a function of the pass.

    make: from the positions of the selected tokens, int64 [n] ascending, and what every token of the model sees: how
    many keys, int64 [L], or under a window its spans, int64 [L, 3] ([L, 6] with keys picked); all on the host. Its
    result is passed as it is, or on the device of the rows.
    """

    name: str
    make: Callable[[np.ndarray, np.ndarray], torch.Tensor] = field(repr=False)
    on_device: bool = field(default=False, repr=False)


@dataclass(frozen=True, slots=True)
class ChosenKeys:
    """Which keys of older chunks each chunk reads at one attention, int32 [samples, heads, places]; it is kept.

    name: of the buffer of the keys. The places of each chunk: lowering/key_picks.py.
    """

    name: str


@dataclass(frozen=True, slots=True)
class KeyWorth:
    """What each measure of a key counts when keys are picked, float32 vector on the host."""


@dataclass(frozen=True, slots=True)
class Pick:
    """For each selected token the row of the source that the shared value `name` expands, int64 [n]."""

    name: str


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A value that a block makes of the prompt alone, once. attended: attention reads it as keys or values only."""

    place: int
    attended: bool


@dataclass(frozen=True, slots=True)
class Modulated:
    """What enters the query projection of the first attention."""


@dataclass(frozen=True, slots=True)
class Output:
    """One of the flat outputs of the model."""

    place: int


Operand: TypeAlias = (
    Input | Stream | Shared | Additive | RowSource | Index | Positions | Filled | TakenFrom | Buffer | Weight
    | PerSelection | ChosenKeys | KeyWorth | Pick | Hoisted
)
Result: TypeAlias = Stream | Shared | RowSource | Positions | Pick | Buffer | ChosenKeys | Hoisted | Modulated | Output


@dataclass(frozen=True, slots=True)
class AttentionSite:
    """An attention over video tokens. node: its name in the graph; path: its module in the model.

    mask: the shared value that its mask comes from, None where it has no mask.
    """

    node: str
    path: str
    keys: Buffer
    values: Buffer
    mask: Shared | None


@dataclass(frozen=True, slots=True)
class Part:
    """A graph whose placeholders are `takes` and whose outputs are `gives`, in order."""

    module: fx.GraphModule
    takes: tuple[Operand, ...]
    gives: tuple[Result, ...]
    attentions: tuple[AttentionSite, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the module."""
        return self.module.graph

    @property
    def call(self) -> Callable[..., tuple[Any, ...]]:
        """The uncompiled callable: (*takes) -> (*gives)."""
        return self.module.forward

    def __call__(self, *arguments: object) -> tuple[Any, ...]:
        """Runs the graph on values in the order of `takes`."""
        return self.module(*arguments)

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """With `graph`, what torch.fx.Interpreter asks for: so a part that takes its weights runs node by node."""
        return self.module.named_modules()

    def holders(self) -> dict[Operand, fx.Node]:
        """The placeholder of each operand, in order."""
        return dict(zip(self.takes, self.graph.find_nodes(op="placeholder"), strict=True))

    def results(self) -> dict[Result, fx.node.Argument]:
        """What the graph returns for each result, in order; a constant is no node."""
        returned = self.graph.output_node().args[0]
        assert isinstance(returned, tuple | list)
        return dict(zip(self.gives, returned, strict=True))


def attribute(module: torch.nn.Module, name: str) -> object:
    """The tensor or constant that graphs name by a dotted path. Raises AttributeError."""
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
