"""The official files to the components of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from mccompile.models.magi.checkpoint import load_transformer, load_vae
from mccompile.models.magi.config import read_official_config
from mccompile.models.magi.errors import MagiCheckpointError, MagiLayoutError
from mccompile.models.magi.scheduler import MagiScheduler
from mccompile.models.magi.text import MagiSpecialTokens
from mccompile.models.magi.transformer import MagiTransformer3DModel
from mccompile.models.magi.vae import AutoencoderKLMagi


class Components(TypedDict):
    """The arguments of MagiPipeline."""

    transformer: MagiTransformer3DModel
    scheduler: MagiScheduler
    tokenizer: PreTrainedTokenizerBase | None
    text_encoder: T5EncoderModel | None
    vae: AutoencoderKLMagi | None
    special_tokens: MagiSpecialTokens | None


def _text_encoder(folder: Path) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    if not folder.is_dir():
        raise MagiCheckpointError(str(folder), "no such folder", "give the folder ckpt/t5/t5-v1_1-xxl")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # In float32, as officially: T5 v1.1 overflows in float16 and its captions are compared with trained tokens.
    encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return tokenizer, encoder.eval()


def official_components(
    config: Path | str,
    transformer: Path | str,
    vae: Path | str | None,
    text_encoder: Path | str | None,
    special_tokens: Path | str | None,
    dtype: torch.dtype,
) -> Components:
    """See MagiPipeline.from_official."""
    official = read_official_config(config)
    if official.fp8:
        raise MagiLayoutError(
            f"{config}: engine_config.fp8_quant",
            "the quantised checkpoints need fp8 kernels of their own",
            "set fp8_quant to false and point at the checkpoint without `_quant`",
        )
    tokenizer, encoder = (None, None) if text_encoder is None else _text_encoder(Path(text_encoder))
    return Components(
        transformer=load_transformer(transformer, official.model, dtype, official.settings.distilled),
        scheduler=MagiScheduler.from_settings(official.settings),
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=None if vae is None else load_vae(vae, dtype),
        special_tokens=None if special_tokens is None else MagiSpecialTokens.from_npz(special_tokens),
    )
