"""Proves, at each new shape, that attention masks are prefixes of the keys, and keeps the prefix lengths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mccompile.capture.part import Input
from mccompile.capture.split import split_prelude
from mccompile.capture.types import CapturedModel
from mccompile.lowering.attention import prefix_lengths
from mccompile.lowering.repeated import Repeated, TooLarge, run_repeated
from mccompile.lowering.strip import stripped
from mccompile.lowering.types import LoweredModel
from mccompile.runtime.errors import NotAPrefix
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value

SHAPES_KEPT = 8


class Prefixes:
    """Prefix lengths per token, by the shapes of the inputs."""

    def __init__(self, lowered: LoweredModel) -> None:
        self._names = tuple(sorted(lowered.rows.prefixes)) if lowered.rows is not None else ()
        self._captured = lowered.captured
        self._known: dict[tuple[object, ...], np.ndarray] = {}

    def lengths(self, inputs: Mapping[str, Value], layout: Layout) -> np.ndarray:
        """How many keys each token of the latent may see, int64 [L]; all of them where no mask is in play.

        Raises NotAPrefix where the masks at this shape are not what they were at compile time.
        """
        if not self._names:
            tokens = layout.tokens + layout.behind
            return np.full(tokens, tokens, np.int64)
        shapes = tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())
        if shapes not in self._known:
            while len(self._known) >= SHAPES_KEPT:
                del self._known[next(iter(self._known))]
            self._known[shapes] = self._prove(inputs)
        return self._known[shapes]

    def _prove(self, inputs: Mapping[str, Value]) -> np.ndarray:
        found: np.ndarray | None = None
        for name, lengths in lengths_of(self._captured, self._names, inputs).items():
            if lengths is None or (found is not None and not np.array_equal(lengths, found)):
                raise NotAPrefix(name)
            found = lengths
        assert found is not None
        return found


def lengths_of(
    captured: CapturedModel, names: tuple[str, ...], inputs: Mapping[str, Value]
) -> dict[str, np.ndarray | None]:
    """For each of the masks how many keys each row sees; None for one that is no prefix, or no tensor.

    No mask is made whole where it repeats from token to token (lowering/repeated.py): at real sizes that is gigabytes.
    """
    part = stripped(split_prelude(captured, names))
    arguments = [inputs[o.name] for o in part.takes if isinstance(o, Input)]
    try:
        masks = run_repeated(part.module, arguments)
    except TooLarge:
        masks = list(part.call(*arguments))
    found = zip(names, masks, strict=True)
    return {n: prefix_lengths(v) if isinstance(v, torch.Tensor | Repeated) else None for n, v in found}


def provable(captured: CapturedModel, names: tuple[str, ...], calls: tuple[Mapping[str, Value], ...]) -> frozenset[str]:
    """Which of the masks `names` are prefixes, and the same ones, at every one of the calls."""
    good = set(names)
    for inputs in calls:
        lengths = lengths_of(captured, names, inputs) if names else {}
        first = next((v for v in lengths.values() if v is not None), None)
        good -= {n for n, v in lengths.items() if v is None or first is None or not np.array_equal(v, first)}
    return frozenset(good)
