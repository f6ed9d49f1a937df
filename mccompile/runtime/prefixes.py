"""Proves, at each new shape, that attention masks are prefixes of the keys, and keeps the prefix lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mccompile import ir
from mccompile.capture.part import Input
from mccompile.capture.split import split_prelude
from mccompile.capture.types import CapturedModel
from mccompile.lowering.attention import prefix_lengths
from mccompile.lowering.errors import NoWindow
from mccompile.lowering.key_picks import seen_within
from mccompile.lowering.repeated import Repeated, TooLarge, run_repeated
from mccompile.lowering.strip import stripped
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy, Reach
from mccompile.runtime.errors import NoChunks, NotAPrefix
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value

SHAPES_KEPT = 8


class Prefixes:
    """Prefix lengths per token, by the shapes of the inputs."""

    def __init__(self, lowered: LoweredModel) -> None:
        self._names = tuple(sorted(lowered.rows.prefixes)) if lowered.rows is not None else ()
        self._captured = lowered.captured
        self._known: dict[tuple[object, ...], np.ndarray] = {}
        self._spans: dict[tuple[object, ...], np.ndarray] = {}

    def seen(self, inputs: Mapping[str, Value], layout: Layout, reach: Reach | None) -> np.ndarray:
        """What each token of the latent sees: so many of the first keys, int64 [L], or spans of a window, int64 [L, 3].

        Where keys are picked, int64 [L, 6] (key_picks.sights_of).
        Raises NotAPrefix, and NoChunks where the masks at this shape let no tokens be told apart in chunks.
        """
        lengths = self.lengths(inputs, layout)
        if reach is None:
            return lengths
        known = (reach, lengths.size, layout.positions, *self._shapes(inputs))
        if known not in self._spans:
            spans = seen_within(lengths, reach, layout.positions)
            if spans is None:
                raise NoChunks
            if len(self._spans) >= SHAPES_KEPT:
                self._spans.clear()
            self._spans[known] = spans
        return self._spans[known]

    def lengths(self, inputs: Mapping[str, Value], layout: Layout) -> np.ndarray:
        """How many keys each token of the latent may see, int64 [L]; all of them where no mask is in play.

        Raises NotAPrefix where the masks at this shape are not what they were at compile time.
        """
        if not self._names:
            tokens = layout.tokens + layout.behind
            return np.full(tokens, tokens, np.int64)
        shapes = self._shapes(inputs)
        if shapes not in self._known:
            while len(self._known) >= SHAPES_KEPT:
                del self._known[next(iter(self._known))]
            self._known[shapes] = self._prove(inputs)
        return self._known[shapes]

    def _shapes(self, inputs: Mapping[str, Value]) -> tuple[object, ...]:
        return tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in inputs.values())

    def _prove(self, inputs: Mapping[str, Value]) -> np.ndarray:
        found: np.ndarray | None = None
        for name, lengths in lengths_of(self._captured, self._names, inputs).items():
            if lengths is None or (found is not None and not np.array_equal(lengths, found)):
                raise NotAPrefix(name)
            found = lengths
        assert found is not None
        return found


def one_chunk(tokens: int, cache: ir.Cache) -> np.ndarray:
    """What tokens see that all see all, as `Prefixes.seen` has it: where sizes matter, and not who sees what."""
    return chunks_alike(tokens, 1, None if cache.window is None else Reach(1, 0, int(cache.keys is not None)), tokens)


def chunks_alike(tokens: int, chunks: int, reach: Reach | None, frame: int) -> np.ndarray:
    """What the tokens of equally long chunks see, as `Prefixes.seen` has it. frame: tokens of a frame."""
    lengths = (np.arange(tokens) * chunks // tokens + 1) * (tokens // chunks)
    if reach is None:
        return lengths
    found = seen_within(lengths, reach, frame)
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


def check_chunks(lowered: LoweredModel, bound: BoundPolicy, calls: Sequence[Mapping[str, Value]]) -> None:
    """Looks whether attention tells chunks apart in the example calls, where the policy has a window.

    Raises NoWindow (MC0508) where all tokens see all tokens, NoChunks (MC0616) where not only later chunks are hidden.
    """
    window, reach = lowered.policy.cache.window, bound.reach
    if window is None:
        return
    prefixes, unknown = Prefixes(lowered), Layout(1, 1, 1, 1)  # the masks tell how many tokens there are
    chunks = [np.unique(prefixes.seen(inputs, unknown, reach)[:, 2]).size for inputs in calls]
    if max(chunks) == 1:
        why = "at both sizes that it was recorded at, all tokens see all tokens"
        raise NoWindow(lowered.policy.name, lowered.captured.model_class, window, why)


def provable(captured: CapturedModel, names: tuple[str, ...], calls: tuple[Mapping[str, Value], ...]) -> frozenset[str]:
    """Which of the masks `names` are prefixes, and the same ones, at every one of the calls."""
    good = set(names)
    for inputs in calls:
        lengths = lengths_of(captured, names, inputs) if names else {}
        first = next((v for v in lengths.values() if v is not None), None)
        good -= {n for n, v in lengths.items() if v is None or first is None or not np.array_equal(v, first)}
    return frozenset(good)
