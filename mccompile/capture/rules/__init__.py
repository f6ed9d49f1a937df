"""One rule per operator: from the labels of its operands to those of its result. What is absent is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import fx

from mccompile.capture.rows import Labels
from mccompile.capture.rules import attention, channel, layout, pointwise, segment
from mccompile.capture.scope import Scope

Rule: TypeAlias = Callable[[Scope, fx.Node], Labels | list[Labels]]

RULES: Mapping[object, Rule] = {
    **pointwise.RULES,
    **channel.RULES,
    **layout.RULES,
    **segment.RULES,
    **attention.RULES,
}
