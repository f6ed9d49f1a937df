"""Makes the parts of the pipeline folder that are not trained by gradient: codec, tokenizer, text encoder, scheduler.

`python -m mccompile.models.embedded.build --out DIR` is deterministic; `train` adds the transformer.
"""

import argparse
import json
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mccompile.models.embedded.codec import BlockCodec, to_blocks
from mccompile.models.embedded.scenes import (
    COLOURS,
    MOTIONS,
    PHRASES,
    SHAPES,
    TEXTURES,
    VERBS,
    render,
    sample_scene,
)

CHANNELS: Final = 24
TEXT_DIM: Final = 64
FLOW_SHIFT: Final = 4.0
CODEC_SCENES: Final = 192
LAYERS: Final = 6


def vocabulary() -> list[str]:
    """Every word of every prompt, after the special tokens `<pad>`, `</s>` and `<unk>`."""
    words = {word for phrase in PHRASES for word in phrase.split() if not word.startswith("{")}
    words.update(COLOURS, SHAPES, MOTIONS, TEXTURES, VERBS)
    return ["<pad>", "</s>", "<unk>", *sorted(words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer that ends every prompt with `</s>`."""
    ids = {word: index for index, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_text_encoder() -> UMT5EncoderModel:
    """A frozen, seeded, one-layer UMT5: word identity and neighbourhood, which is all that these prompts need."""
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=len(vocabulary()),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return UMT5EncoderModel(config).eval()


def fit_codec() -> BlockCodec:
    """Principal directions of the blocks of `CODEC_SCENES` procedural videos.

    A channel is divided by the square root of its standard deviation (times one constant that makes the mean latent
    variance 1): strong channels stay strong, so noise drowns the fine detail first, as it does in pixels, and the
    loss spends itself where the eye looks; whitening would make the last direction as costly as the first.
    """
    rng = np.random.default_rng(1)
    videos = np.stack([render(sample_scene(rng)) for _ in range(CODEC_SCENES)])
    pixels = torch.from_numpy(videos).permute(0, 4, 1, 2, 3) * 2.0 - 1.0
    blocks = to_blocks(torch.cat([pixels[:, :, :1], pixels], dim=2)).flatten(0, 3).double()
    centre = blocks.mean(0)
    centred = blocks - centre
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviation = variances.flip(0)[:CHANNELS].sqrt()
    basis = directions.flip(1)[:, :CHANNELS].T
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    scale = deviation.sqrt() * deviation.mean().sqrt()
    codec = BlockCodec(
        z_dim=CHANNELS,
        latents_mean=(0.0,) * CHANNELS,
        latents_std=tuple(round(value, 6) for value in scale.tolist()),
    )
    codec.basis.data.copy_(basis)
    codec.centre.data.copy_(centre)
    return codec.eval()


def build_scheduler() -> UniPCMultistepScheduler:
    """The scheduler of SkyReels-V2 with the sigma shift that the model was trained with."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def build_transformer() -> SkyReelsV2Transformer3DModel:
    """The untrained transformer, seeded; it begins by predicting zero."""
    torch.manual_seed(0)
    model = SkyReelsV2Transformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=640,
        num_layers=LAYERS,
        rope_max_seq_len=64,
        num_frame_per_block=4,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    return model


def write_folder(out: Path) -> None:
    """Write `model_index.json` and every component but the transformer's weights."""
    out.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save_pretrained(out / "tokenizer")
    build_text_encoder().save_pretrained(out / "text_encoder")
    fit_codec().save_pretrained(out / "vae")
    build_scheduler().save_pretrained(out / "scheduler")
    index = {
        "_class_name": "SkyReelsV2DiffusionForcingPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "SkyReelsV2Transformer3DModel"],
        "vae": ["mccompile.models.embedded.codec", "BlockCodec"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    write_folder(parser.parse_args().out)


if __name__ == "__main__":
    main()
