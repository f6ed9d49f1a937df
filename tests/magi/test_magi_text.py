"""Captions of chunks: cleaning, special tokens, padding."""

from __future__ import annotations

import pytest
import torch

from mccompile.models.magi import MagiInputError
from mccompile.models.magi.text import check_special_tokens, chunk_captions, clean_caption, encode_caption, trim
from tests.magi.tiny import PROMPT, tiny_special_tokens, tiny_text

TOKENS = tiny_special_tokens()
EMBEDS = torch.arange(64 * 16, dtype=torch.float32).reshape(1, 64, 16)
MASK = (torch.arange(64) < 5)[None]
NULL = -torch.arange(64 * 16, dtype=torch.float32).reshape(64, 16)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("A Good-Natured Dog, 1280x720", "a good-natured dog"),
        ("see https://example.org/a.jpg now", "see now"),
        ("一只狗 a dog", "a dog"),
        ("./photo.jpg", ""),  # beautifulsoup4 would warn of a path
    ],
)
def test_prompts_are_cleaned(prompt: str, cleaned: str) -> None:
    once = clean_caption(prompt)
    assert once == cleaned
    assert clean_caption(once) == once


def test_t5_sees_a_padded_prompt_and_its_mask() -> None:
    tokenizer, encoder = tiny_text()
    embeds, mask = encode_caption(PROMPT, tokenizer, encoder, 64, torch.device("cpu"))
    assert embeds.shape == (1, 64, 16)
    assert mask.sum() == len(PROMPT.split()) + 1
    other, _ = encode_caption("a blue square", tokenizer, encoder, 64, torch.device("cpu"))
    assert not torch.equal(embeds, other)


def test_special_tokens_come_first_and_count_down() -> None:
    names = check_special_tokens(("DURATION", "HQ"), TOKENS)
    assert names == ("HQ", "DURATION")
    captions = chunk_captions(EMBEDS, MASK, NULL, 10, 0, TOKENS, names)
    for i in range(10):
        remaining = min(10 - i - 1, 7)
        assert torch.equal(captions.caption[i, 0], TOKENS.other_tokens[7 + remaining])
        assert torch.equal(captions.caption[i, 1], TOKENS.other_tokens[1])
        assert torch.equal(captions.caption[i, 2:], EMBEDS[0, :62])
    assert captions.caption_mask.sum(1).tolist() == [7] * 10
    assert torch.equal(captions.null[3], NULL)
    assert captions.null_mask.sum(1).tolist() == [50] * 10


def test_a_prefix_has_no_caption_and_is_not_counted() -> None:
    captions = chunk_captions(EMBEDS, MASK, NULL, 4, 2, TOKENS, ("DURATION",))
    assert captions.caption_mask.sum(1).tolist() == [0, 0, 6, 6]
    assert torch.equal(captions.caption[2, 0], TOKENS.other_tokens[8])
    assert torch.equal(captions.caption[3, 0], TOKENS.other_tokens[7])


def test_an_empty_prompt_is_the_null_caption() -> None:
    captions = chunk_captions(EMBEDS, torch.zeros_like(MASK), NULL, 2, 0, TOKENS, ("HQ",))
    assert torch.equal(captions.caption, captions.null)
    assert torch.equal(captions.caption_mask, captions.null_mask)


def test_negative_tokens_go_before_the_null_caption() -> None:
    captions = chunk_captions(EMBEDS, MASK, NULL, 1, 0, TOKENS, (), negative=True)
    first = torch.cat((TOKENS.other_tokens[4:5], TOKENS.other_tokens[:1], TOKENS.logo_token, TOKENS.caption_token))
    assert torch.equal(captions.null[0, :4], first)
    assert torch.equal(captions.null[0, 4:], NULL[:60])
    assert captions.null_mask.sum() == 50


def test_trimming_takes_padding_only() -> None:
    wide = torch.zeros(1, 300, 16)
    mask = (torch.arange(300) < 130)[None]
    captions = chunk_captions(wide, mask, torch.zeros(300, 16), 2)
    assert trim(captions).caption.shape[1] == 192
    assert trim(captions).caption_mask.sum() == captions.caption_mask.sum()
    full = chunk_captions(wide, torch.ones_like(mask), torch.zeros(300, 16), 2)
    assert trim(full).caption.shape[1] == 300


def test_unknown_and_missing_tokens_are_refused() -> None:
    with pytest.raises(MagiInputError, match="HQQ"):
        check_special_tokens(("HQQ",), TOKENS)
    with pytest.raises(MagiInputError, match="no special tokens"):
        check_special_tokens(("HQ",), None)
    assert check_special_tokens((), None) == ()
