"""One rule per operator: from the labels of its operands to those of its result. What is absent is refused."""

from __future__ import annotations

from collections.abc import Mapping

from mccompile.capture.rules import attention, channel, layout, pointwise, segment
from mccompile.capture.scope import Rule

RULES: Mapping[object, Rule] = {
    **pointwise.RULES,
    **channel.RULES,
    **layout.RULES,
    **segment.RULES,
    **attention.RULES,
}
