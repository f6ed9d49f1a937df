"""Makes pipeline folders of published video models from their published configurations, without their weights.

`python -m mccompile.models.published NAME FOLDER` writes configurations alone: what `doctor` and `explain` need.
`--random` adds random weights in bfloat16, so that the folder can be compiled and run. Text encoder and tokenizer are
small ones of the true width; transformer, VAE and scheduler have the published configurations.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import ConfigMixin

from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.models.magi import MAGI_4_5B, MAGI_24B, MagiModelConfig, MagiSettings

Config = Mapping[str, object]
_WAN_1_3B: Config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_WAN_14B: Config = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
_UNIPC: Config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
_T5: Config = {
    "d_model": 4096, "d_ff": 64, "d_kv": 64, "num_heads": 1, "num_layers": 1, "vocab_size": 512,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA: Config = {
    "hidden_size": 4096, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64,
    "num_hidden_layers": 3, "vocab_size": 512,
}  # fmt: skip
_CLIP: Config = {
    "hidden_size": 768, "intermediate_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 512,
    "max_position_embeddings": 77, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2,
}  # fmt: skip
_WAN_VAE: tuple[str, Config] = ("AutoencoderKLWan", {})
_UMT5 = ("UMT5EncoderModel", _T5)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A pipeline by the classes and configurations of its parts. values: further entries of its index.

    library: the module that has the classes of all parts but the text encoders.
    """

    pipeline: str
    transformer: tuple[str, Config]
    vae: tuple[str, Config]
    scheduler: tuple[str, Config]
    text: tuple[tuple[str, Config], ...]
    second: bool = False  # another transformer of the same configuration
    values: Config | None = None
    more: Mapping[str, tuple[str, Config]] = field(default_factory=dict)  # further parts, by their names
    library: str = "diffusers"


def _wan(size: Config, shift: float, **more: object) -> PublishedModel:
    scheduler = ("UniPCMultistepScheduler", {**_UNIPC, "flow_shift": shift})
    return PublishedModel("WanPipeline", ("WanTransformer3DModel", size), _WAN_VAE, scheduler, (_UMT5,), **more)  # type: ignore[arg-type]


def _magi(size: MagiModelConfig) -> PublishedModel:
    return PublishedModel(
        "MagiPipeline", ("MagiTransformer3DModel", asdict(size)),
        ("AutoencoderKLMagi", {}),
        ("MagiScheduler", asdict(MagiSettings())), (("T5EncoderModel", _T5),),
        more={"special_tokens": ("MagiSpecialTokens", {})}, library="mccompile.models.magi",
    )  # fmt: skip


def _skyreels(size: Config) -> PublishedModel:
    return PublishedModel(
        "SkyReelsV2DiffusionForcingPipeline", ("SkyReelsV2Transformer3DModel", size), _WAN_VAE,
        ("UniPCMultistepScheduler", {**_UNIPC, "flow_shift": 8.0}), (_UMT5,),
    )  # fmt: skip


MODELS: Mapping[str, PublishedModel] = {
    "skyreels-v2-df-1.3b": _skyreels({**_WAN_1_3B, "inject_sample_info": True}),
    "skyreels-v2-df-14b": _skyreels(_WAN_14B),
    "wan2.1-1.3b": _wan(_WAN_1_3B, 3.0),
    "wan2.1-14b": _wan(_WAN_14B, 5.0),
    "wan2.2-a14b": _wan(_WAN_14B, 12.0, second=True, values={"boundary_ratio": 0.875}),
    "hunyuanvideo": PublishedModel(
        "HunyuanVideoPipeline", ("HunyuanVideoTransformer3DModel", {}), ("AutoencoderKLHunyuanVideo", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}), (("LlamaModel", _LLAMA), ("CLIPTextModel", _CLIP)),
    ),
    "cogvideox-5b": PublishedModel(
        "CogVideoXPipeline",
        ("CogVideoXTransformer3DModel", {
            "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True,
        }),
        ("AutoencoderKLCogVideoX", {"scaling_factor": 0.7}),
        ("CogVideoXDPMScheduler", {
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0, "timestep_spacing": "trailing",
            "set_alpha_to_one": True,
        }),
        (("T5EncoderModel", _T5),),
    ),
    "magi-1-4.5b": _magi(MAGI_4_5B),
    "magi-1-24b": _magi(MAGI_24B),
}  # fmt: skip
"""By the names that this command takes; the configurations are those of the Hugging Face repositories of the models."""


def write(name: str, folder: Path, random: bool = False) -> None:
    """Writes the pipeline folder of a published model. random: with random weights in bfloat16.

    Raises KeyError for a name that MODELS does not have.
    """
    model = MODELS[name]
    index: dict[str, object] = {"_class_name": model.pipeline, "_diffusers_version": diffusers.__version__}
    parts = {"transformer": model.transformer, "vae": model.vae, "scheduler": model.scheduler}
    parts |= {"transformer_2": model.transformer} if model.second else {}
    for part, (kind, config) in {**parts, **model.more}.items():
        own = getattr(importlib.import_module(model.library), kind)
        index[part] = ["diffusers" if model.library == "diffusers" else own.__module__, kind]
        _own(folder / part, own, config, random)
    for number, (kind, config) in enumerate(model.text):
        end = f"_{number + 1}" if number else ""
        index[f"text_encoder{end}"] = ["transformers", kind]
        index[f"tokenizer{end}"] = ["transformers", "PreTrainedTokenizerFast"]
        _text(folder / f"text_encoder{end}", getattr(transformers, kind), config, random)
        shutil.copytree(EMBEDDED_FOLDER / "tokenizer", folder / f"tokenizer{end}", dirs_exist_ok=True)
    index |= model.values or {}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _own(folder: Path, kind: type[ConfigMixin], config: Config, random: bool) -> None:
    if not issubclass(kind, torch.nn.Module):
        kind(**config).save_pretrained(folder)
    elif random:
        _random(kind(**config)).save_pretrained(folder)
    else:
        told = {"_class_name": kind.__name__, "_diffusers_version": diffusers.__version__, **config}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _text(folder: Path, kind: type[transformers.PreTrainedModel], config: Config, random: bool) -> None:
    settings = kind.config_class(**config)
    if random:
        _random(kind(settings)).save_pretrained(folder)
    else:
        settings.save_pretrained(folder)


def _random(model: torch.nn.Module):  # type: ignore[no-untyped-def]
    """The model in bfloat16 with small random weights; those of norms stay as they are."""
    noise = torch.Generator().manual_seed(0)
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02, generator=noise)
    return model


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m mccompile.models.published", description=__doc__)
    parser.add_argument("name", choices=tuple(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", action="store_true", help="with random weights in bfloat16")
    arguments = parser.parse_args()
    write(arguments.name, arguments.folder, arguments.random)


if __name__ == "__main__":
    main()
