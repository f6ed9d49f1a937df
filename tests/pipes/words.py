"""A tokenizer and a text encoder with random weights, so that tiny pipelines take prompts as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.pipes.parts import DIM, made

_KINDS = 90  # of letters


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a tokenizer gives."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


class Letters:
    """One token a letter, one behind the last, and zeros up to the longest text or to `max_length`."""

    model_max_length = 16

    def __call__(
        self, texts: str | Sequence[str], *, padding: str, max_length: int = 16, **more: object
    ) -> Tokens:
        texts = [texts] if isinstance(texts, str) else texts
        length = max_length if padding == "max_length" else 1 + max(map(len, texts))
        ids, mask = (torch.zeros(len(texts), length, dtype=torch.long) for _ in range(2))
        for i, text in enumerate(texts):
            numbers = [*(2 + ord(letter) % _KINDS for letter in text[: length - 1]), 1]
            ids[i, : len(numbers)] = torch.tensor(numbers)
            mask[i, : len(numbers)] = 1
        return Tokens(ids, mask)

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        """Words for a message about text that was cut."""
        return ["" for _ in ids]


def word_parts() -> dict[str, object]:
    """The parts of a pipeline with a T5 text encoder."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=2 + _KINDS, d_model=DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": Letters(), "text_encoder": made(T5EncoderModel, config=config)}
