"""The oracle of picked keys: the stock transformer under a dense mask, called with what a compiled one was called with.

A torch function mode puts attention under a mask of every token against every key, per head. Keys are picked by the
definition, with loops and matrices of all pairs. Tokens that the compiled one did not compute have the keys, values and
residuals that they had before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as nnf
from torch.overrides import TorchFunctionMode

from mccompile.policy.bind import Reach
from mccompile.runtime.compiled import CompiledModel
from tests.lowering.test_key_picks import picked_by_definition
from tests.runtime.conftest import Tiny, transformer

CHUNKS, TOKENS, FRAME = 4, 24, 12  # of the tiny pipeline: chunks of a video, tokens of a chunk, tokens of a frame
FEW: dict[str, object] = {"num_inference_steps": 6, "ar_step": 2}
WEIGHT = 0.3


@dataclasses.dataclass
class Call:
    """A call of the compiled transformer: its arguments, what it gave, and which tokens were computed, bool [B, L]."""

    given: dict[str, Any]
    output: torch.Tensor
    computed: torch.Tensor


def recorded(tiny: Tiny, model: CompiledModel, **more: object) -> tuple[torch.Tensor, list[Call]]:
    """A run with its calls. Guidance branches take turns: the even calls are of one, the odd calls of the other."""
    model.runner.masks, calls, own = [], [], model.forward

    def forward(*args: Any, **given: Any) -> Any:
        assert not args
        kept = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        found = own(**given)
        assert model.runner.masks is not None
        mask = model.runner.masks[-1]
        calls.append(Call(kept, found[0].clone(), torch.from_numpy(mask.reshape(len(mask), -1))))
        return found

    model.forward = forward  # type: ignore[method-assign]
    try:
        return tiny.run(**FEW, **more), calls
    finally:
        model.forward = own  # type: ignore[method-assign]


class Oracle(TorchFunctionMode):
    """The stock transformer with kept tokens and picked keys, for the calls of one guidance branch.

    wrong: "" or a mistake that is made on purpose.
    """

    def __init__(self, reach: Reach, wrong: str = "") -> None:
        super().__init__()
        self.model, self.reach, self.wrong = transformer(), reach, wrong
        self.model._set_ar_attention(2)
        self.keys: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.picks: dict[tuple[int, int, int, int], list[int]] = {}
        self.residual: torch.Tensor | None = None
        self.computed, self.layer = torch.zeros(0), 0
        self.model.blocks[0].register_forward_pre_hook(self._enter)
        self.model.blocks[-1].register_forward_hook(self._leave)

    def run(self, call: Call) -> torch.Tensor:
        self.computed, self.layer = call.computed, 0
        with self, torch.no_grad():
            return self.model(**call.given)[0]

    def _enter(self, block: object, given: tuple[Any, ...]) -> None:
        self.entered = given[0]

    def _leave(self, block: object, given: object, made: torch.Tensor) -> torch.Tensor:
        computed = self.computed.unsqueeze(-1)
        kept = torch.zeros_like(made) if self.residual is None else self.residual
        self.residual = torch.where(computed, made - self.entered, kept)
        return torch.where(computed, made, self.entered + self.residual)

    def __torch_function__(
        self, func: Callable[..., object], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:  # fmt: skip
        given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        if func is not nnf.scaled_dot_product_attention or given.get("attn_mask") is None:
            return func(*args, **(kwargs or {}))
        q, k, v = (given[n] for n in ("query", "key", "value"))
        computed, layer = self.computed[:, None, :, None], self.layer
        self.layer += 1
        if layer in self.keys:
            k, v = (torch.where(computed, now, kept) for now, kept in zip((k, v), self.keys[layer], strict=True))
        self.keys[layer] = k, v
        scores = q @ k.transpose(2, 3) / q.size(3) ** 0.5
        return scores.masked_fill(~self._seen(q, k, layer), float("-inf")).softmax(-1) @ v

    def _seen(self, q: torch.Tensor, k: torch.Tensor, layer: int) -> torch.Tensor:
        """What each token sees of each key, bool [B, H, L, L]."""
        batch, heads, tokens, _ = q.shape
        seen = torch.zeros(batch, heads, tokens, tokens, dtype=torch.bool)
        last, sink, budget = self.reach.chunks, self.reach.sink, self.reach.keys
        for b, h, c in np.ndindex(batch, heads, tokens // TOKENS):
            rows = slice(c * TOKENS, (c + 1) * TOKENS)
            near, first = max(0, c - last + 1) * TOKENS, min(sink, c + 1) * TOKENS
            seen[b, h, rows, :first] = True
            seen[b, h, rows, near : rows.stop] = True
            if near - first <= budget * TOKENS:
                seen[b, h, rows, : rows.stop] = True
                continue
            asking = slice(rows.stop - FRAME, rows.stop)
            anew = self.wrong != "never anew" or (layer, b, h, c) not in self.picks
            if anew and (bool(self.computed[b, asking].all()) or self.wrong == "always anew"):
                asking = slice(rows.start, rows.start + FRAME) if self.wrong == "first frame" else asking
                found = picked_by_definition(q[b, h, asking], k[b, h, first:near], WEIGHT, budget * TOKENS)
                self.picks[layer, b, h, c] = [first + i for i in found]
            seen[b, h, rows, self.picks[layer, b, h, c]] = True
        return seen


def furthest(calls: Sequence[Call], reach: Reach, wrong: str = "") -> float:
    """How far the outputs of recorded calls are from those of the oracle, at most."""
    branches = [Oracle(reach, wrong) for _ in range(2)]
    return max(float((call.output - branches[n % 2].run(call)).abs().max()) for n, call in enumerate(calls))
