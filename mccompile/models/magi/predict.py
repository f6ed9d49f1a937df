"""The velocity of the chunks of one call: which passes of the transformer it takes, and how they are combined."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mccompile.models.magi.cache import CleanChunkCache, no_keys
from mccompile.models.magi.config import MagiSettings
from mccompile.models.magi.embeddings import ADALN_DROPPED, ADALN_KEPT
from mccompile.models.magi.guidance import combine, guidance_weights
from mccompile.models.magi.schedule import MagiCall
from mccompile.models.magi.text import ChunkCaptions
from mccompile.models.magi.transformer import KeyValues, MagiTransformer3DModel

GuidancePass = Literal["full", "prev", "uncond"]
# Compiled graphs take sizes 0 and 1 for constants: a compiled transformer gets two keys that nothing attends to.
UNSEEN_ROWS = 2


@dataclass(frozen=True, slots=True)
class CallText:
    """Text of the chunks of one call: embeddings [n, L, channels], masks bool [n, L]."""

    caption: Tensor
    caption_mask: Tensor
    null: Tensor
    null_mask: Tensor

    @classmethod
    def of(cls, call: MagiCall, captions: ChunkCaptions) -> CallText:
        """Clean chunks are run without caption in every pass."""
        clean, active = list(call.clean_chunks), list(call.active_chunks)
        return cls(
            caption=torch.cat((captions.null[clean], captions.caption[active])),
            caption_mask=torch.cat((captions.null_mask[clean], captions.caption_mask[active])),
            null=captions.null[clean + active],
            null_mask=captions.null_mask[clean + active],
        )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """One pass over n chunks; ranges in chunks, counted from the first chunk whose keys are given."""

    chunks: tuple[int, ...]
    latents: Tensor  # [1, C, frames, h, w]
    times: tuple[float, ...]
    text: Tensor  # [n, L, channels]
    mask: Tensor  # [n, L]
    ranges: tuple[tuple[int, int], ...]
    frame_offset: int


def _at_least_two(inputs: _Inputs) -> _Inputs:
    """One chunk as two halves with the same time, text and keys: the same result, without a size of 1."""
    if len(inputs.chunks) > 1:
        return inputs
    text, mask = inputs.text.repeat(2, 1, 1), inputs.mask.repeat(2, 1)
    return replace(inputs, times=inputs.times * 2, text=text, mask=mask, ranges=inputs.ranges * 2)


class VelocityPredictor:
    """Runs the passes of a call and keeps the clean chunks' keys and values in `cache`."""

    def __init__(
        self, transformer: MagiTransformer3DModel, settings: MagiSettings, cache: CleanChunkCache, skip_unused: bool
    ) -> None:
        self.transformer = transformer
        self.settings = settings
        self.cache = cache
        self.skip_unused = skip_unused
        self.current_chunks: tuple[int, ...] = ()  # of the pass that runs, in the order of its tokens

    def predict(self, call: MagiCall, latents: Tensor, text: CallText, oldest: int) -> list[Tensor]:
        """latents [1, C, frames of the call, h, w] -> velocity of each active chunk, [1, C, chunk_width, h, w].

        oldest: the earliest chunk that this call or a later one attends to.
        """
        self.cache.drop_before(oldest)
        cached = self.cache.window(call.first_key_chunk, call.slice_point)
        guided = self._distilled if self.settings.distilled else self._guided
        velocities, new = guided(call, latents, text, cached)
        if call.clean_chunks:
            self.cache.append(call.clean_chunks, new)
        return velocities

    def _guided(
        self, call: MagiCall, latents: Tensor, text: CallText, cached: KeyValues | None
    ) -> tuple[list[Tensor], KeyValues]:
        """Three-way guidance; a call of clean chunks alone needs the pass that fills the cache and no other."""
        clean, weights = len(call.clean_chunks), [guidance_weights(t, self.settings) for t in call.active_times]
        full: list[Tensor | None] = [None] * len(weights)
        if weights and not (self.skip_unused and all(w.full == 0 for w in weights)):
            inputs = self._inputs(call, latents, text.caption, text.caption_mask)
            full = list(self._chunks(self._forward("full", inputs, cached, 0)[0])[clean:])
        inputs = self._inputs(call, latents, text.null, text.null_mask)
        sample, new = self._forward("prev", inputs, cached, clean)
        prev = self._chunks(sample)[clean:]
        uncond = [
            self._uncond(call, latents, text, clean + i) if w.uncond != 0 or not self.skip_unused else None
            for i, w in enumerate(weights)
        ]
        return [combine(*velocities) for velocities in zip(weights, uncond, prev, full, strict=True)], new

    def _uncond(self, call: MagiCall, latents: Tensor, text: CallText, row: int) -> Tensor:
        """Chunk `row` of the call by itself: no past, no caption, and its clock starts at 0.

        One pass per chunk, not a batch of them as officially: then leaving one out changes no bit of the others, and
        every pass of the transformer is of one batch item.
        """
        inputs = _Inputs(
            chunks=call.chunks[row : row + 1],
            latents=self._chunks(latents)[row],
            times=call.times[row : row + 1],
            text=text.null[row : row + 1],
            mask=text.null_mask[row : row + 1],
            ranges=((0, 1),),
            frame_offset=0,
        )
        return self._forward("uncond", inputs, None, 0)[0]

    def _distilled(
        self, call: MagiCall, latents: Tensor, text: CallText, cached: KeyValues | None
    ) -> tuple[list[Tensor], KeyValues]:
        """One pass; past the threshold the first active chunk is also run without its past and blended."""
        clean = len(call.clean_chunks)
        inputs = self._inputs(call, latents, text.caption, text.caption_mask)
        if call.nearly_clean:
            inputs = self._with_copy(inputs, clean)
        sample, new = self._forward("full", inputs, cached, clean, call.interval)
        velocities = self._chunks(sample)[clean:]
        if call.nearly_clean:
            scale, alone = self.settings.nearly_clean_scale, velocities.pop()
            velocities[0] = velocities[0] * scale + alone * (1 - scale)
        return velocities, new

    def _with_copy(self, inputs: _Inputs, row: int) -> _Inputs:
        """Appends chunk `row` once more, in the next chunk's place, attending to itself alone."""
        end = max(e for _, e in inputs.ranges)
        return _Inputs(
            chunks=(*inputs.chunks, inputs.chunks[row]),
            latents=torch.cat((inputs.latents, self._chunks(inputs.latents)[row]), dim=2),
            times=(*inputs.times, inputs.times[row]),
            text=torch.cat((inputs.text, inputs.text[row : row + 1])),
            mask=torch.cat((inputs.mask, inputs.mask[row : row + 1])),
            ranges=(*inputs.ranges, (end, end + 1)),
            frame_offset=inputs.frame_offset,
        )

    def _inputs(self, call: MagiCall, latents: Tensor, text: Tensor, mask: Tensor) -> _Inputs:
        first = call.first_key_chunk
        return _Inputs(
            chunks=call.chunks,
            latents=latents,
            times=call.times,
            text=text,
            mask=mask,
            ranges=tuple((a - first, b - first) for a, b in call.kv_ranges),
            frame_offset=call.slice_point * self.settings.chunk_width,
        )

    def _forward(
        self, name: GuidancePass, inputs: _Inputs, cached: KeyValues | None, kv_chunks: int, interval: int = 1
    ) -> tuple[Tensor, KeyValues]:
        device = inputs.latents.device
        row = self.transformer.config.caption_max_length + (ADALN_KEPT if name == "full" else ADALN_DROPPED)
        span = torch.tensor([self._span(interval)], device=device) if self.settings.distilled else None
        shape, dtype = self.transformer.shape, self.transformer.compute_dtype
        replaced = not isinstance(self.transformer, MagiTransformer3DModel)  # by a compiled one
        unseen = UNSEEN_ROWS if replaced and cached is None else 0
        if cached is None:
            cached = no_keys(shape, 1, inputs.latents, dtype, unseen)
        self.current_chunks = inputs.chunks
        if replaced and kv_chunks == 0 and self.cache.chunk_tokens % 2 == 0:
            inputs = _at_least_two(inputs)
        with self.transformer.cache_context(name):
            sample, new = self.transformer(
                hidden_states=inputs.latents,
                timestep=torch.tensor([inputs.times], device=device),
                encoder_hidden_states=inputs.text[None],
                encoder_attention_mask=inputs.mask[None],
                adaln_row=torch.tensor([row], device=device),
                # On the host: eager attention reads the values, and must not wait for the device.
                kv_ranges=torch.tensor(inputs.ranges) * self.cache.chunk_tokens + unseen,
                frame_offset=torch.tensor(inputs.frame_offset, device=device),
                distill_span=span,
                cached_key_values=cached,
                return_kv_chunks=kv_chunks,
                return_dict=False,
            )
        return sample, new

    def _span(self, interval: int) -> float:
        """The step size that a distilled model is told, in its own units."""
        steps = self.settings.num_inference_steps
        return 2 * 4 / interval if steps == 12 else 2 * steps / 4

    def _chunks(self, video: Tensor) -> list[Tensor]:
        return list(video.split(self.settings.chunk_width, dim=2))
