"""One rule per operator. It gives the labels of the result from those of the operands. Other operators are refused."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile.capture.moves import LAYOUTS
from mccompile.capture.rules import attention, channel, layout, pointwise, segment
from mccompile.capture.scope import LabelRule

_RULES: Mapping[object, LabelRule] = {
    **pointwise.RULES,
    **channel.RULES,
    **layout.RULES,
    **segment.RULES,
    **attention.RULES,
}


def rule_of(operator: object) -> LabelRule | None:
    """The rule of an operator; None where nobody knows what it does to the token axis."""
    return layout.layout if operator in LAYOUTS else _RULES.get(operator)
