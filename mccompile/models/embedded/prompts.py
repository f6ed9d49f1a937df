"""Prompts to text rows, by the very tokenizer and text encoder of the pipeline folder."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

ROWS: Final = 16
"""Rows kept of a prompt; the longest phrase has 11 words and its end mark."""


class PromptEncoder:
    """Tokenizer and frozen text encoder of a pipeline folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()

    @torch.no_grad()
    def rows(self, prompts: list[str]) -> Tensor:
        """[B, ROWS, text_dim], zero behind each prompt's end, as diffusers' `encode_prompt` has it."""
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=ROWS, truncation=True, return_tensors="pt"
        )
        hidden = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask.unsqueeze(-1)
