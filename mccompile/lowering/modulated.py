"""The modulated input: what enters the first self-attention's query projection (TeaCache's indicator).

before: block 0: x -> norm, scale, shift -> %m -> linear -> ... -> sdpa;  after: (streams, shared, weights) -> (%m,)
refuses when: capture found no such value, and says why (capture/projected.py)
"""

from __future__ import annotations

from mccompile.capture.types import ModulatedInput
from mccompile.lowering.strip import Slim, cut


def modulated_input(plain: Slim, found: ModulatedInput) -> Slim:
    """The first block on all rows, (*streams, *shared, *weights), cut at its modulated input."""
    return cut(plain, (next(n for n in plain.module.graph.nodes if n.name == found.node),))
