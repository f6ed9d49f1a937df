"""The role of a graph: what it is for. A backend gets a graph with its role and returns what runs in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import fx

Value: TypeAlias = torch.Tensor | int
GraphCall: TypeAlias = Callable[..., tuple[Value, ...]]
Purpose: TypeAlias = Literal[
    "prelude",  # values that blocks read, of the inputs in `depends`
    "block",  # a block on all rows
    "rows",  # a block on selected rows
    "prompt",  # what such a block takes from the prompt alone, once per prompt
    "gather",  # rows of prelude values, for a selection
    "modulated",  # the input of the first attention
    "decide",
    "observe",
    "postlude",
]


@dataclass(frozen=True, slots=True)
class Role:
    """The part of a model that a graph is. kind: of block, if it is part of one. depends: inputs of the model."""

    part: Purpose
    kind: int = 0
    depends: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """As it is named in messages."""
        match self.part:
            case "prelude":
                return f"prelude:{'+'.join(sorted(self.depends))}"
            case "block" | "rows" | "prompt":
                return f"block{self.kind}:{_FORMS[self.part]}"
            case _:
                return self.part


_FORMS = {"block": "plain", "rows": "partial", "prompt": "once"}
Backend: TypeAlias = Callable[[fx.GraphModule, Role], GraphCall]
