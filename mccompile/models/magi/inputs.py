"""Checks of the pipeline's arguments: before anything is computed, with place, cause and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.errors import MagiInputError
from mccompile.models.magi.media import OutputType

CALLBACK_TENSORS = ("latents",)


def check_output(output_type: OutputType, has_vae: bool, callback_tensors: Iterable[str]) -> None:
    """Raises MagiInputError (MC0724)."""
    known = get_args(OutputType)
    if output_type not in known:
        raise MagiInputError("output_type", repr(output_type), f"give one of {', '.join(known)}")
    if output_type != "latent" and not has_vae:
        raise MagiInputError("output_type", f"{output_type!r} without a VAE", "load one, or use output_type='latent'")
    unknown = sorted(set(callback_tensors) - set(CALLBACK_TENSORS))
    if unknown:
        raise MagiInputError("callback_on_step_end_tensor_inputs", f"{unknown}", "only 'latents' is offered")


def check_size(height: int, width: int, multiple: int) -> None:
    """Pixels; positions of a single row or column of tokens are undefined. Raises MagiInputError (MC0724)."""
    for name, size in (("height", height), ("width", width)):
        if size % multiple or size < 2 * multiple:
            raise MagiInputError(name, f"{size}", f"give a multiple of {multiple}, at least {2 * multiple}")


def check_prompt(prompt: object, embeds: Tensor | None, mask: Tensor | None, config: MagiModelConfig) -> None:
    """A prompt, or embeddings [1, caption_max_length, caption_channels] with their mask. Raises MagiInputError."""
    if (prompt is None) == (embeds is None) or (embeds is None) != (mask is None):
        raise MagiInputError(
            "prompt, prompt_embeds, prompt_attention_mask",
            "neither or both of a prompt and embeddings are given, or embeddings without their mask",
            "give a prompt, or prompt_embeds [1, L, channels] with prompt_attention_mask [1, L]",
        )
    if prompt is not None and not isinstance(prompt, str):
        raise MagiInputError("prompt", type(prompt).__name__, "give one prompt as a string, one video per call")
    if embeds is not None and mask is not None:
        want = [1, config.caption_max_length, config.caption_channels]
        if list(embeds.shape) != want or list(mask.shape) != want[:2]:
            given = f"{list(embeds.shape)}, mask {list(mask.shape)}"
            raise MagiInputError("prompt_embeds", given, f"give {want} and {want[:2]}")


def check_prefix(prefix: Tensor, size: tuple[int, ...]) -> None:
    """prefix_latents against [1, z, (any), h, w] of the video. Raises MagiInputError (MC0724)."""
    want = f"[1, {size[1]}, frames, {size[3]}, {size[4]}]"
    if prefix.dim() != 5 or (*prefix.shape[:2], *prefix.shape[3:]) != (*size[:2], *size[3:]) or prefix.shape[2] < 1:
        raise MagiInputError("prefix_latents", f"{list(prefix.shape)}", f"give {want}")


def initial_noise(
    given: Tensor | None, size: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Noise float32 of `size` [1, z, f, h, w]: drawn, or the first frames of what is given. Raises MagiInputError."""
    if given is None:
        return randn_tensor(size, generator=generator, device=device, dtype=torch.float32)
    fits = given.dim() == 5 and (*given.shape[:2], *given.shape[3:]) == (*size[:2], *size[3:])
    if not fits or given.shape[2] < size[2]:
        raise MagiInputError("latents", f"{list(given.shape)}", f"give {list(size)}, or more frames")
    return given[:, :, : size[2]].to(device, torch.float32).clone()
