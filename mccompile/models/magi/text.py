"""Captions: cleaning, T5, MAGI-1's special tokens, and the caption of every chunk."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from bs4 import MarkupResemblesLocatorWarning
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from mccompile.models.magi.errors import MagiCheckpointError, MagiInputError

SpecialToken = Literal[
    "STATIC_FIRST_FRAMES", "DYNAMIC_FIRST_FRAMES", "BORDERNESS", "HQ", "3D_MODEL", "2D_ANIME", "DURATION"
]  # in the order in which they are prepended
NULL_TOKENS = 50  # of the null caption, the ones that are attended to
_ROWS = {
    "TRANS": 0, "HQ": 1, "STATIC_FIRST_FRAMES": 2, "DYNAMIC_FIRST_FRAMES": 3, "BORDERNESS": 4, "3D_MODEL": 15,
    "2D_ANIME": 16,
}  # fmt: skip
_FIRST_DURATION, _MAX_DURATION = 7, 7
_TRIM = 64  # padded captions are cut to a multiple of this many tokens


class MagiSpecialTokens(ModelMixin, ConfigMixin):
    """Learned caption tokens (quality, remaining duration, style) of example/assets/special_tokens.npz."""

    _keep_in_fp32_modules: ClassVar[list[str]] = ["caption_token", "logo_token", "other_tokens"]

    @register_to_config
    def __init__(self, caption_channels: int = 4096, num_other_tokens: int = 100) -> None:
        super().__init__()
        self.caption_token = nn.Parameter(torch.zeros(1, caption_channels), requires_grad=False)
        self.logo_token = nn.Parameter(torch.zeros(1, caption_channels), requires_grad=False)
        self.other_tokens = nn.Parameter(torch.zeros(num_other_tokens, caption_channels), requires_grad=False)

    @classmethod
    def from_npz(cls, path: Path | str) -> MagiSpecialTokens:
        """Reads the official file; values are rounded to float16, as there. Raises MagiCheckpointError (MC0722)."""
        try:
            with np.load(path) as data:
                arrays = {k: torch.from_numpy(data[k].astype(np.float16)).float() for k in data.files}
        except (OSError, ValueError) as error:
            raise MagiCheckpointError(str(path), str(error), "take example/assets/special_tokens.npz") from error
        missing = {"caption_token", "logo_token", "other_tokens"} - set(arrays)
        if missing:
            raise MagiCheckpointError(
                str(path), f"missing arrays: {', '.join(sorted(missing))}", "take example/assets/special_tokens.npz"
            )
        rows, channels = arrays["other_tokens"].shape
        tokens = cls(caption_channels=channels, num_other_tokens=rows)
        tokens.load_state_dict({k: arrays[k] for k in ("caption_token", "logo_token", "other_tokens")})
        return tokens

    def row(self, name: str, remaining: int = 0) -> Tensor:
        """The token [1, channels]; `remaining` chunks follow the one it is for (DURATION only)."""
        if name == "CAPTION":
            return self.caption_token
        if name == "LOGO":
            return self.logo_token
        index = _FIRST_DURATION + min(remaining, _MAX_DURATION) if name == "DURATION" else _ROWS[name]
        return self.other_tokens[index : index + 1]


@dataclass(frozen=True, slots=True)
class ChunkCaptions:
    """Captions of all chunks of a video: embeddings float32 [chunks, L, channels], masks bool [chunks, L]."""

    caption: Tensor
    caption_mask: Tensor
    null: Tensor
    null_mask: Tensor


def clean_caption(prompt: str) -> str:
    """The DeepFloyd cleaning (lower case, no URLs, CJK, file names, ...), twice, as officially."""
    with warnings.catch_warnings():
        # beautifulsoup4 takes a prompt that looks like a path or URL for a mistake.
        warnings.filterwarnings("ignore", category=MarkupResemblesLocatorWarning)
        for _ in range(2):
            prompt = PixArtAlphaPipeline._clean_caption(PixArtAlphaPipeline, prompt)
    return prompt


def encode_caption(
    prompt: str, tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, max_length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A prompt to embeddings float32 [1, max_length, channels] and mask bool [1, max_length]."""
    tokens = tokenizer(
        [clean_caption(prompt)],
        padding="max_length",
        max_length=max_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask.bool()


def check_special_tokens(names: Sequence[str], tokens: MagiSpecialTokens | None) -> tuple[str, ...]:
    """The names in the order in which they are prepended. Raises MagiInputError (MC0724)."""
    known = get_args(SpecialToken)
    for name in names:
        if name not in known:
            raise MagiInputError("special_tokens", f"unknown token {name!r}", f"known tokens: {', '.join(known)}")
    if names and tokens is None:
        raise MagiInputError(
            "special_tokens",
            "the pipeline has no special tokens",
            "load them with MagiSpecialTokens.from_npz(...), or pass special_tokens=()",
        )
    return tuple(name for name in known if name in names)


def _prepend(token: Tensor, caption: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[L, C], [L] with one more token in front, cut to L."""
    length = caption.shape[0]
    caption = torch.cat((token.to(caption), caption))[:length]
    return caption, torch.cat((mask.new_ones(1), mask))[:length]


def chunk_captions(
    embeds: Tensor,
    mask: Tensor,
    null: Tensor,
    num_chunks: int,
    prefix_chunks: int = 0,
    tokens: MagiSpecialTokens | None = None,
    names: Sequence[str] = (),
    negative: bool = False,
) -> ChunkCaptions:
    """The caption of every chunk.

    embeds [1, L, C] and mask bool [1, L]: the encoded prompt; null [L, C]: the model's null caption.
    names: special tokens, prepended in that order (the last comes first). negative: prepend CAPTION, LOGO, TRANS and
    BORDERNESS to the null caption (its mask stays). A prompt of no tokens becomes the null caption. Prefix chunks
    have no caption of their own.
    """
    length = null.shape[0]
    null_mask = torch.arange(length, device=null.device) < NULL_TOKENS
    if negative and tokens is not None:
        for name in ("CAPTION", "LOGO", "TRANS", "BORDERNESS"):
            null = torch.cat((tokens.row(name).to(null), null))[:length]
    generated = num_chunks - prefix_chunks
    captions, masks = [null] * prefix_chunks, [torch.zeros_like(null_mask)] * prefix_chunks
    for i in range(generated):
        if mask.any():
            caption, kept = embeds[0].to(null), mask[0].to(null_mask)
            for name in names:
                assert tokens is not None
                caption, kept = _prepend(tokens.row(name, generated - i - 1), caption, kept)
        else:
            caption, kept = null, null_mask
        captions.append(caption)
        masks.append(kept)
    return ChunkCaptions(
        caption=torch.stack(captions),
        caption_mask=torch.stack(masks),
        null=null.expand(num_chunks, -1, -1),
        null_mask=null_mask.expand(num_chunks, -1),
    )


def trim(captions: ChunkCaptions) -> ChunkCaptions:
    """Cuts padding that every chunk has. Exact: masked tokens have no part in any attention."""
    used = (captions.caption_mask | captions.null_mask).any(dim=0).nonzero()
    length = min(captions.null.shape[1], -(-(int(used.max()) + 1) // _TRIM) * _TRIM)
    return ChunkCaptions(
        caption=captions.caption[:, :length],
        caption_mask=captions.caption_mask[:, :length],
        null=captions.null[:, :length],
        null_mask=captions.null_mask[:, :length],
    )
