"""A MAGI-1 of a few thousand parameters with everything a pipeline folder holds."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from mccompile.models.magi import (
    AutoencoderKLMagi,
    MagiModelConfig,
    MagiPipeline,
    MagiScheduler,
    MagiSettings,
    MagiSpecialTokens,
    MagiTransformer3DModel,
)

TINY = MagiModelConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=96,
    num_attention_heads=8,
    num_query_groups=8,
    kv_channels=8,
    caption_channels=16,
    caption_max_length=64,
)
GROUPED = replace(TINY, hidden_size=128, num_attention_heads=16)
GATED = replace(
    TINY, gated_linear_unit=True, half_channel_vae=True, in_channels=32, out_channels=32, x_rescale_factor=0.1
)
SETTINGS = MagiSettings(num_inference_steps=8, chunk_width=2)
PROMPT = "a red circle moving right"
WORDS = ("<pad>", "</s>", "<unk>", *PROMPT.split(), "blue", "square", "left")


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that make every part matter; norms near their identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "rope.bands":
            spread = 0.5 / max(1, parameter[0].numel()) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return model.eval().requires_grad_(False)


def tiny_transformer(config: MagiModelConfig = TINY, seed: int = 0) -> MagiTransformer3DModel:
    return randomise(MagiTransformer3DModel(**asdict(config)), seed)


def tiny_vae() -> AutoencoderKLMagi:
    return randomise(AutoencoderKLMagi(embed_dim=256, depth=1, num_heads=4, mlp_ratio=1.0, video_size=64), 1)


def tiny_special_tokens() -> MagiSpecialTokens:
    return randomise(MagiSpecialTokens(caption_channels=16, num_other_tokens=20), 2)


def tiny_text() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    return tokenizer, T5EncoderModel(config).eval().requires_grad_(False)


def tiny_pipeline(settings: MagiSettings = SETTINGS, config: MagiModelConfig = TINY) -> MagiPipeline:
    tokenizer, encoder = tiny_text()
    pipe = MagiPipeline(
        tiny_transformer(config),
        MagiScheduler.from_settings(settings),
        tokenizer,
        encoder,
        tiny_vae(),
        tiny_special_tokens(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
