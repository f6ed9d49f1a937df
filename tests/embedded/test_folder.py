"""The pipeline folder that ships: small, complete, loaded and driven like any SkyReels-V2."""

import json

import numpy as np
import pytest
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

from mccompile.models.embedded import DEFAULTS, EMBEDDED_FOLDER, BlockCodec
from mccompile.models.embedded.build import build_scheduler, build_text_encoder, build_tokenizer, vocabulary
from mccompile.models.embedded.prompts import ROWS, PromptEncoder
from mccompile.models.embedded.scenes import COLOURS, MOTIONS, PHRASES, SHAPES, TEXTURES, VERBS

LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def pipe() -> SkyReelsV2DiffusionForcingPipeline:
    """The pipeline, by the one call that loads the real model too."""
    torch.set_num_threads(1)
    loaded = SkyReelsV2DiffusionForcingPipeline.from_pretrained(EMBEDDED_FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def all_prompts() -> list[str]:
    """Every phrase with every word in its place at least once."""
    places = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": tuple(MOTIONS), "texture": tuple(TEXTURES)}
    prompts = [DEFAULTS.prompt]
    for phrase in PHRASES:
        for index in range(6):
            words = {place: values[index % len(values)] for place, values in places.items()}
            prompts.append(phrase.format(verb=VERBS[index % len(VERBS)], **words))
    return prompts


def test_folder_is_small() -> None:
    """All of it is under 12 MB."""
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()) < LIMIT_BYTES


def test_loads_through_diffusers(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """The stock classes, block-causal, in float32, with scale factors that fit the codec."""
    assert type(pipe.transformer) is SkyReelsV2Transformer3DModel
    assert type(pipe.scheduler) is UniPCMultistepScheduler
    assert type(pipe.vae) is BlockCodec
    assert pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert pipe.transformer.config.num_frame_per_block == 4
    assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (2, 8)
    assert pipe.transformer.config.in_channels == pipe.vae.config.z_dim


def test_every_weight_is_finite(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """A checkpoint taken from a run gone wrong does not ship."""
    for parameter in pipe.transformer.parameters():
        assert parameter.isfinite().all()


def test_vocabulary_covers_the_prompts(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """No prompt has an unknown word, none is cut, and words come back as they were."""
    for prompt in all_prompts():
        ids = pipe.tokenizer(prompt).input_ids
        assert pipe.tokenizer.unk_token_id not in ids
        assert len(ids) <= ROWS
        assert pipe.tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert pipe.tokenizer.unk_token_id in pipe.tokenizer("a chartreuse circle").input_ids


def test_training_reads_prompts_as_the_pipeline_does(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """`PromptEncoder` gives the first rows of `encode_prompt`, whose other rows are zero."""
    prompts = [*all_prompts()[:4], ""]
    expected, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=64)
    torch.testing.assert_close(PromptEncoder(EMBEDDED_FOLDER).rows(prompts), expected[:, :ROWS])
    assert not expected[:, ROWS:].any()


def test_folder_is_what_build_makes(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """Tokenizer, text encoder and scheduler in the folder are those that `build` writes (the codec: test_codec)."""
    assert build_tokenizer().get_vocab() == pipe.tokenizer.get_vocab()
    assert len(vocabulary()) == len(set(vocabulary())) == pipe.text_encoder.config.vocab_size
    fresh, shipped = build_text_encoder().state_dict(), pipe.text_encoder.state_dict()
    assert all(torch.equal(fresh[name], shipped[name]) for name in fresh)
    config = json.loads((EMBEDDED_FOLDER / "scheduler" / "scheduler_config.json").read_text())
    assert config["flow_shift"] == build_scheduler().config.flow_shift


def generate(pipe: SkyReelsV2DiffusionForcingPipeline, seed: int) -> np.ndarray:
    """A real but short generation, two chunks in three asynchronous steps: [F, H, W, 3]."""
    frames = pipe(
        DEFAULTS.prompt,
        num_frames=15,
        height=DEFAULTS.height,
        width=DEFAULTS.width,
        num_inference_steps=3,
        ar_step=1,
        guidance_scale=DEFAULTS.guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    ).frames
    return frames[0]


def test_generation_follows_its_seed(pipe: SkyReelsV2DiffusionForcingPipeline) -> None:
    """The same seed gives the same video bit by bit, another seed another."""
    first = generate(pipe, 0)
    assert first.shape == (15, 64, 64, 3)
    assert np.isfinite(first).all()
    assert np.array_equal(first, generate(pipe, 0))
    assert not np.array_equal(first, generate(pipe, 1))
