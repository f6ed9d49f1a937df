"""The model's own output as what is kept: `layers model { keep residual }`.

Computed tokens have the output of the step. The others have their last output, or the latent input of the step and the
difference between output and latent input of their last computation (EasyCache, arXiv 2507.02860).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch

from mccompile import ir
from mccompile.capture.types import TokenGrid
from mccompile.lowering.kept import encode, kept_form
from mccompile.lowering.sources import Located, ModelOutput, to_cells
from mccompile.lowering.types import LoweredModel
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.facts import model_region
from mccompile.policy.groups import group_of
from mccompile.runtime.bands import BandWeights, band_weights, weighed
from mccompile.runtime.blocks import BlockCalls, Env
from mccompile.runtime.clock import Moment
from mccompile.runtime.execute import Postlude
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import History, Memory
from mccompile.runtime.upload import to_device


def whole_model(lowered: LoweredModel, postlude: Postlude, blocks: BlockCalls) -> WholeOutput | None:
    """Returns what completes the outputs of a model whose policy keeps them; None where it keeps results of blocks."""
    region = model_region(lowered.policy)
    if region is None:
        return None
    where = lowered.located["output"]
    assert region.keep in ("residual", "output", "gap")
    return WholeOutput(region.keep, group_of(region), where, lowered, postlude, blocks, region.bands)


@dataclass(frozen=True, slots=True)
class WholeOutput:
    """Completes the output of a call.

    keep: the output less the latent input, itself, or less the other branch's. bands: what stands in for it; None: what
    was kept.
    """

    keep: Literal["residual", "output", "gap"]
    group: str
    where: Located
    lowered: LoweredModel
    postlude: Postlude
    blocks: BlockCalls
    bands: ir.Bands | None = None

    def results(
        self, env: Env, shared: Mapping[str, Value], inputs: Mapping[str, Value], mask: np.ndarray, moment: Moment,
        layout: Layout, memory: Memory, beside: torch.Tensor | None = None, weights: BandWeights | None = None,
    ) -> tuple[Value, ...]:
        """Returns the model's outputs, and keeps those of the computed tokens. mask: these, bool [B, G, F, P].

        beside: what the model returned to the other branch at this step. Without it no gap is kept, and nothing is
        reused. weights: of frequencies, where they are told apart.
        """
        if self.keep == "gap" and beside is None:
            return self.postlude.run(env, shared, inputs)
        if memory.outputs is None:
            memory.outputs = self.room(inputs, layout, moment)
        latents = self._cells(self._latents(inputs), mask)
        base = latents if self.keep == "residual" else torch.zeros_like(latents)
        if self.keep == "gap" and beside is not None:
            base = self._cells(beside, mask)
        chunks = [t.original for t in moment.chunks]
        kept = self.blocks.kept_values(memory.outputs[:, chunks], latents)
        stands = kept
        if weights is not None:
            stands = self._cells(weighed(self._latent_like(kept, layout), weights), mask)
        if not mask.any():
            return (self._latent_like(base + stands, layout),)
        (output,) = self.postlude.run(env, shared, inputs)
        assert isinstance(output, torch.Tensor)
        made = self._cells(output, mask)
        computed = to_device(torch.from_numpy(np.ascontiguousarray(mask)), output.device).unsqueeze(-1)
        self._keep(torch.where(computed, made - base, kept), moment, memory)
        if mask.all():
            return (output,)
        return (self._latent_like(torch.where(computed, made, base + stands), layout),)

    def weights(self, bound: BoundPolicy, moment: Moment, history: History, mask: np.ndarray) -> BandWeights | None:
        """Returns what frequencies are worth in a call that computes the tokens of `mask`; None where it reads none."""
        if self.bands is None or mask.all():
            return None
        return band_weights(self.bands, bound, moment, history, len(mask))

    def room(self, inputs: Mapping[str, Value], layout: Layout, moment: Moment) -> torch.Tensor:
        """Returns zeros for what is kept of all chunks of the video, in the form and in the memory where it is kept."""
        latents = self._latents(inputs)
        shape = torch.Size((layout.batch, moment.total, layout.frames, layout.positions, self._channels()))
        kept, dtype = kept_form(shape, latents.dtype, self.blocks.cache.residual)
        return torch.zeros(kept, dtype=dtype, device="cpu" if self.blocks.staging else latents.device)

    def _keep(self, cells: torch.Tensor, moment: Moment, memory: Memory) -> None:
        """Keeps the results of the call's chunks; what copies of chunks return is not looked at again."""
        assert memory.outputs is not None
        own = [(g, t.chunk) for g, t in enumerate(moment.chunks) if t.copy_of is None]
        self.blocks.settle()
        made = encode(cells[:, [g for g, _ in own]], self.blocks.cache.residual)
        memory.outputs[:, [chunk for _, chunk in own]] = made.to(memory.outputs.device, memory.outputs.dtype)

    def _latents(self, inputs: Mapping[str, Value]) -> torch.Tensor:
        """Returns the latent input, without what lies behind it: a condition has channels of its own."""
        grid, value = self.lowered.captured.grid, self.where.value
        assert isinstance(grid, TokenGrid)
        assert isinstance(value, ModelOutput)
        latents = inputs[grid.source]
        assert isinstance(latents, torch.Tensor)
        return latents.narrow(1, 0, value.channels)

    def _channels(self) -> int:
        """Returns how many numbers of the output belong to a token."""
        assert isinstance(self.where.value, ModelOutput)
        return self.where.value.channels * prod(self.where.patch)

    def _cells(self, value: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
        return to_cells(value, self.where, torch.empty(mask.shape, device="meta"))

    def _latent_like(self, cells: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Returns [B, G, F, P, C] as [B, channels, frames, height, width]; the inverse of `to_cells`."""
        assert isinstance(self.where.value, ModelOutput)
        channels, patch = self.where.value.channels, self.where.patch
        columns = layout.positions // layout.rows
        x = cells.unflatten(3, (layout.rows, columns)).unflatten(-1, (channels, *patch))
        x = x.permute(0, 5, 1, 2, 6, 3, 7, 4, 8)
        frames, height, width = (layout.chunks * layout.frames, layout.rows, columns)
        sizes = (n * p for n, p in zip((frames, height, width), patch, strict=True))
        return x.reshape(layout.batch, channels, *sizes)
