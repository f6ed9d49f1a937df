"""MagiPipeline: text, image and video to video, chunk by chunk, in the manner of diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from mccompile.models.magi.cache import CleanChunkCache
from mccompile.models.magi.config import MagiSettings
from mccompile.models.magi.errors import MagiInputError
from mccompile.models.magi.inputs import (
    CALLBACK_TENSORS,
    check_output,
    check_prefix,
    check_prompt,
    check_size,
    initial_noise,
)
from mccompile.models.magi.media import Frames, MagiPipelineOutput, OutputType, to_frames, to_output
from mccompile.models.magi.official import official_components
from mccompile.models.magi.predict import CallText, GuidancePass, VelocityPredictor
from mccompile.models.magi.schedule import MagiCall, magi_schedule, oldest_needed
from mccompile.models.magi.scheduler import MagiScheduler
from mccompile.models.magi.text import (
    ChunkCaptions,
    MagiSpecialTokens,
    SpecialToken,
    check_special_tokens,
    chunk_captions,
    encode_caption,
    trim,
)
from mccompile.models.magi.transformer import MagiTransformer3DModel
from mccompile.models.magi.vae import AutoencoderKLMagi

StepCallback = Callable[["MagiPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
ChunkCallback = Callable[["MagiPipeline", int, Tensor], None]

DEFAULT_SPECIAL_TOKENS: tuple[SpecialToken, ...] = ("HQ", "DURATION")
PREFIX_FRAMES = 32  # of a prefix video, the official choice
SPATIAL_FACTOR = 8  # pixels per latent column


@dataclass(frozen=True, slots=True, eq=False)
class MagiRun:
    """One generation: how it is sampled, and the chunks of its video, a prefix's included."""

    settings: MagiSettings
    chunks: int


class MagiPipeline(DiffusionPipeline):
    """Generates a video in chunks of 24 frames, several in flight (MAGI-1, arXiv 2505.13211).

    transformer: MagiTransformer3DModel; scheduler: MagiScheduler (base or distilled settings); vae, tokenizer and
    text_encoder may be None when latents and prompt embeddings are given and latents are asked for; special_tokens
    may be None when none are used.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ("tokenizer", "text_encoder", "vae", "special_tokens")
    _exclude_from_cpu_offload = ("special_tokens",)
    _callback_tensor_inputs = CALLBACK_TENSORS

    def __init__(
        self,
        transformer: MagiTransformer3DModel,
        scheduler: MagiScheduler,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: T5EncoderModel | None = None,
        vae: AutoencoderKLMagi | None = None,
        special_tokens: MagiSpecialTokens | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            special_tokens=special_tokens,
        )
        if vae is not None:
            vae.enable_tiling()
        self._current_call: MagiCall | None = None
        self._predictor: VelocityPredictor | None = None
        self._run: MagiRun | None = None
        self._interrupt = False

    @property
    def current_call(self) -> MagiCall | None:
        """The call being evaluated, for whoever wraps the transformer or `integrate`; None outside the loop."""
        return self._current_call

    @property
    def current_chunks(self) -> tuple[int, ...]:
        """The chunks of the transformer pass being evaluated, in the order of its tokens; () outside the loop.

        "full" and "prev" passes run all chunks of the call (a distilled one may run its first active chunk twice, the
        second time last); an "uncond" pass runs one chunk.
        """
        return () if self._predictor is None else self._predictor.current_chunks

    @property
    def current_run(self) -> MagiRun | None:
        """The generation under way, a new object for each; None outside the loop."""
        return self._run

    @property
    def guidance_passes(self) -> tuple[GuidancePass, ...]:
        """The passes of the transformer that make up one velocity, by the names of their cache contexts."""
        return ("full",) if self.scheduler.settings.distilled else ("full", "prev", "uncond")

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def schedule(
        self, num_frames: int = 96, prefix_frames: int = 0, num_inference_steps: int | None = None
    ) -> tuple[MagiCall, ...]:
        """Every call of a run. num_frames: video frames to generate; prefix_frames: *latent* frames given."""
        settings = self.scheduler.with_steps(num_inference_steps)
        chunks = self._count_chunks(num_frames, prefix_frames, settings)
        return magi_schedule(settings, chunks, prefix_frames // settings.chunk_width)

    @staticmethod
    def _count_chunks(num_frames: int, prefix_frames: int, settings: MagiSettings) -> int:
        if num_frames < settings.temporal_factor:
            raise MagiInputError("num_frames", f"{num_frames}", f"ask for at least {settings.temporal_factor} frames")
        return math.ceil((num_frames // settings.temporal_factor + prefix_frames) / settings.chunk_width)

    def integrate(self, latents: Tensor, velocity: Tensor, time: float, next_time: float) -> Tensor:
        """One Euler step of one chunk, float32 [1, C, frames, h, w]: the place where a cache policy may step in."""
        return latents + velocity * float(np.float32(next_time) - np.float32(time))

    @torch.no_grad()
    def encode_prompt(self, prompt: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings float32 [1, L, channels] and mask bool [1, L], L = caption_max_length of the transformer."""
        if self.text_encoder is None or self.tokenizer is None:
            raise MagiInputError(
                "prompt", "the pipeline has no text encoder", "give prompt_embeds and prompt_attention_mask"
            )
        length = self.transformer.config.caption_max_length
        return encode_caption(prompt, self.tokenizer, self.text_encoder, length, device or self._execution_device)

    @torch.no_grad()
    def encode_video(self, frames: Frames, height: int, width: int) -> Tensor:
        """Prefix latents float32 [1, z, f, h, w], scaled: one frame gives one latent frame, 4 k frames give k."""
        if self.vae is None:
            raise MagiInputError("image, video", "the pipeline has no VAE", "load one, or give prefix_latents")
        pixels = to_frames(frames, height, width)
        count = pixels.shape[2]
        if count > 1 and count % self.vae.temporal_factor:
            raise MagiInputError("video", f"{count} frames", f"give a multiple of {self.vae.temporal_factor}")
        latents = self.vae.posterior(pixels.to(self._execution_device, self.vae.dtype)).mode()
        return latents.float() * self.scheduler.settings.latent_scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [1, z, f, h, w] -> video float32 [1, 3, 4 f, 8 h, 8 w] in -1..1."""
        if self.vae is None:
            raise MagiInputError("latents", "the pipeline has no VAE to decode them", "load one")
        scaled = latents.to(self._execution_device) / self.scheduler.settings.latent_scale
        return self.vae.video(scaled.to(self.vae.dtype)).float().clamp(-1, 1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | None = None,
        image: Frames | None = None,
        video: Frames | None = None,
        height: int = 720,
        width: int = 720,
        num_frames: int = 96,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        prefix_latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        special_tokens: Sequence[SpecialToken] | None = None,
        negative_special_tokens: bool = False,
        skip_unused_guidance: bool = True,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback_on_chunk_end: ChunkCallback | None = None,
    ) -> MagiPipelineOutput | tuple[object]:
        """Generates one video of ceil(num_frames / 24) chunks (plus what a prefix needs to fill its chunk).

        image: the first frame; video: frames at 24 fps of which the first 32 are continued (the prefix itself is not
        returned); at most one of image, video and prefix_latents (float32 [1, z, f, h, w], scaled).
        latents: the noise, float32 [1, z, frames, h, w], at least as many frames as the run has.
        special_tokens: default HQ and DURATION where the pipeline has special tokens.
        skip_unused_guidance: leaves out passes whose weight is zero; the result is the same in every bit.
        callback_on_step_end(pipe, call index, times, {"latents": ...}) after every call;
        callback_on_chunk_end(pipe, chunk, latents) as soon as a chunk is done.
        Raises MagiInputError (MC0724) and MagiConfigError (MC0721).
        """
        settings, shape = self.scheduler.with_steps(num_inference_steps), self.transformer.shape
        check_output(output_type, self.vae is not None, callback_on_step_end_tensor_inputs)
        check_prompt(prompt, prompt_embeds, prompt_attention_mask, shape)
        if latents is not None:
            height, width = (s * SPATIAL_FACTOR for s in latents.shape[3:])
        check_size(height, width, SPATIAL_FACTOR * shape.patch_size)
        prefix = self._prefix(image, video, prefix_latents, height, width)
        prefix_frames = 0 if prefix is None else prefix.shape[2]
        chunks = self._count_chunks(num_frames, prefix_frames, settings)
        frames = chunks * settings.chunk_width
        size = (1, shape.latent_channels, frames, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
        if prefix is not None:
            check_prefix(prefix, size)
        noise = initial_noise(latents, size, generator, self._execution_device)
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self.encode_prompt(prompt)
        assert prompt_embeds is not None
        assert prompt_attention_mask is not None
        prefix_chunks = prefix_frames // settings.chunk_width
        captions = self._captions(
            prompt_embeds, prompt_attention_mask, chunks, prefix_chunks, special_tokens, negative_special_tokens
        )
        finished = self._denoise(
            noise,
            prefix,
            captions,
            settings,
            skip_unused_guidance,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            callback_on_chunk_end,
        )
        output = self._finish(finished, output_type)
        self.maybe_free_model_hooks()
        return MagiPipelineOutput(frames=output) if return_dict else (output,)

    def _prefix(
        self, image: Frames | None, video: Frames | None, latents: Tensor | None, height: int, width: int
    ) -> Tensor | None:
        if sum(x is not None for x in (image, video, latents)) > 1:
            raise MagiInputError("image, video, prefix_latents", "more than one is given", "give one of them")
        if image is not None:
            frames = to_frames(image, height, width)
            if frames.shape[2] != 1:
                raise MagiInputError("image", f"{frames.shape[2]} frames", "give one image, or use video=")
            return self.encode_video(frames, height, width)
        if video is not None:
            return self.encode_video(to_frames(video, height, width)[:, :, :PREFIX_FRAMES], height, width)
        return None if latents is None else latents.to(self._execution_device, torch.float32)

    def _captions(
        self,
        embeds: Tensor,
        mask: Tensor,
        chunks: int,
        prefix_chunks: int,
        names: Sequence[SpecialToken] | None,
        negative: bool,
    ) -> ChunkCaptions:
        if names is None:
            names = DEFAULT_SPECIAL_TOKENS if self.special_tokens is not None else ()
        if negative and self.special_tokens is None:
            raise MagiInputError("negative_special_tokens", "the pipeline has no special tokens", "load them")
        ordered, device = check_special_tokens(names, self.special_tokens), self._execution_device
        null = self.transformer.y_embedder.null_caption_embedding.float().to(device)
        embeds, mask = embeds.to(device).float(), mask.to(device).bool()
        return trim(chunk_captions(embeds, mask, null, chunks, prefix_chunks, self.special_tokens, ordered, negative))

    def _denoise(
        self,
        x: Tensor,
        prefix: Tensor | None,
        captions: ChunkCaptions,
        settings: MagiSettings,
        skip_unused: bool,
        on_step: StepCallback | None,
        tensor_inputs: Sequence[str],
        on_chunk: ChunkCallback | None,
    ) -> list[Tensor]:
        """The loop over the calls; returns the finished chunks in order."""
        width, prefix_frames = settings.chunk_width, 0 if prefix is None else prefix.shape[2]
        calls = magi_schedule(settings, x.shape[2] // width, prefix_frames // width)
        p = self.transformer.config.patch_size
        cache = CleanChunkCache(width * (x.shape[3] // p) * (x.shape[4] // p))
        predictor = self._predictor = VelocityPredictor(self.transformer, settings, cache, skip_unused)
        self._run = MagiRun(settings, x.shape[2] // width)
        finished: list[Tensor] = []
        self._interrupt = False
        try:
            with self.progress_bar(total=len(calls)) as bar:
                for call, oldest in zip(calls, oldest_needed(calls), strict=True):
                    self._current_call = call
                    x = self._run_call(predictor, call, oldest, x, prefix, captions)
                    if call.finished_chunk is not None:
                        finished.append(_emitted(x, call.finished_chunk, width, prefix_frames))
                        if on_chunk is not None:
                            on_chunk(self, call.finished_chunk, finished[-1])
                    if on_step is not None:
                        kept = dict.fromkeys(tensor_inputs, x)
                        x = on_step(self, call.index, torch.tensor(call.times), kept).get("latents", x)
                    bar.update()
                    if self._interrupt:
                        break
        finally:
            self._current_call = self._predictor = self._run = None
        return finished

    def _run_call(
        self,
        predictor: VelocityPredictor,
        call: MagiCall,
        oldest: int,
        x: Tensor,
        prefix: Tensor | None,
        captions: ChunkCaptions,
    ) -> Tensor:
        """One call: velocities of its chunks, then one step of each active chunk. Returns the new latents."""
        width, first = predictor.settings.chunk_width, call.slice_point
        window = x[:, :, first * width : (call.chunks[-1] + 1) * width].clone()
        if prefix is not None:
            given = prefix[:, :, first * width :][:, :, : window.shape[2]]
            window[:, :, : given.shape[2]] = given
        velocities = predictor.predict(call, window, CallText.of(call, captions), oldest)
        x = x.clone()
        steps = zip(call.active_chunks, velocities, call.active_times, call.next_times, strict=True)
        for chunk, velocity, time, next_time in steps:
            before = window[:, :, (chunk - first) * width : (chunk - first + 1) * width]
            x[:, :, chunk * width : (chunk + 1) * width] = self.integrate(before, velocity, time, next_time)
        return x

    def _finish(self, finished: list[Tensor], output_type: OutputType) -> object:
        if not finished:
            raise MagiInputError("callback_on_step_end", "interrupted before a chunk was done", "let one chunk finish")
        if output_type == "latent":
            return torch.cat(finished, dim=2)
        video = torch.cat([self.decode_latents(chunk).cpu() for chunk in finished], dim=2)
        return to_output(video, output_type)

    @classmethod
    def from_official(
        cls,
        config: Path | str,
        transformer: Path | str,
        vae: Path | str | None = None,
        text_encoder: Path | str | None = None,
        special_tokens: Path | str | None = None,
        torch_dtype: torch.dtype = torch.bfloat16,
    ) -> MagiPipeline:
        """Builds the pipeline from the official files, without conversion; see docs/magi1.md.

        config: example/*/..._config.json; transformer: the folder of the safetensors shards; vae: ckpt/vae;
        text_encoder: ckpt/t5/t5-v1_1-xxl; special_tokens: example/assets/special_tokens.npz.
        Raises MagiConfigError, MagiCheckpointError and MagiLayoutError (MC0721 to MC0723).
        """
        return cls(**official_components(config, transformer, vae, text_encoder, special_tokens, torch_dtype))


def _emitted(x: Tensor, chunk: int, width: int, prefix_frames: int) -> Tensor:
    """The frames of a finished chunk that are output: those of a prefix video are not, an image's first frame is."""
    start = max(chunk * width, prefix_frames if prefix_frames > 1 else 0)
    return x[:, :, start : (chunk + 1) * width].clone()
