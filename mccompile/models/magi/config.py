"""Configurations: of the transformer, of the sampling loop, and the JSON files of the official repository.

torch-free. Field names are the official ones (SandAI-org/MAGI-1, inference/common/config.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from mccompile.models.magi.errors import MagiConfigError

TimeTransform = Literal["sd3", "square", "identity"]

# Attention outputs are interleaved in 8 groups whatever the model: the layout of the 8-way parallel training run.
JOINT_GROUPS = 8


@dataclass(frozen=True, slots=True)
class MagiModelConfig:
    """Shape of the transformer; the defaults are the 4.5B model. Raises MagiConfigError (MC0721)."""

    num_layers: int = 34
    hidden_size: int = 3072
    ffn_hidden_size: int = 12288
    num_attention_heads: int = 24
    num_query_groups: int = 8  # key/value heads
    kv_channels: int = 128  # head dimension
    layernorm_epsilon: float = 1e-6
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False  # the latent channels are duplicated to in_channels
    patch_size: int = 2
    t_patch_size: int = 1
    in_channels: int = 16
    out_channels: int = 16
    cond_hidden_ratio: float = 0.25
    caption_channels: int = 4096
    caption_max_length: int = 800
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False

    def __post_init__(self) -> None:
        rules = (
            (self.hidden_size == self.num_attention_heads * self.kv_channels, "hidden_size is not heads * kv_channels"),
            (self.num_attention_heads % self.num_query_groups == 0, "heads are not a multiple of num_query_groups"),
            (self.hidden_size % JOINT_GROUPS == 0, f"hidden_size is not a multiple of {JOINT_GROUPS}"),
            (self.kv_channels % 8 == 0, "kv_channels is not a multiple of 8 (rotary bands)"),
            (self.t_patch_size == 1, "t_patch_size is not 1"),
            (self.cond_gating_ratio == 1.0, "cond_gating_ratio is not 1.0"),
            (not self.half_channel_vae or self.in_channels % 2 == 0, "half_channel_vae with odd in_channels"),
        )
        broken = [text for holds, text in rules if not holds]
        if broken:
            raise MagiConfigError("MagiModelConfig", "; ".join(broken), "compare with docs/magi1.md, 'Configurations'")

    @property
    def condition_size(self) -> int:
        """Width of the time + caption condition that drives the gates."""
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def text_size(self) -> int:
        """Width of the caption tokens that cross-attention reads."""
        return int(self.hidden_size * self.xattn_cond_hidden_ratio)

    @property
    def kv_size(self) -> int:
        return self.num_query_groups * self.kv_channels

    @property
    def latent_channels(self) -> int:
        """Channels of the latent video outside the transformer."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels


MAGI_4_5B = MagiModelConfig()
MAGI_24B = MagiModelConfig(
    num_layers=48,
    hidden_size=6144,
    ffn_hidden_size=16384,
    num_attention_heads=48,
    x_rescale_factor=0.1,
    half_channel_vae=True,
    in_channels=32,
    out_channels=32,
    gated_linear_unit=True,
)


@dataclass(frozen=True, slots=True)
class MagiSettings:
    """How a video is sampled; the defaults are the base (not distilled) models. Raises MagiConfigError (MC0721)."""

    num_inference_steps: int = 64
    window_size: int = 4  # chunks in flight
    chunk_width: int = 6  # latent frames per chunk
    noise2clean_kvrange: tuple[int, ...] = (5, 4, 3, 2)  # chunks a chunk may see, itself included; () = all
    clean_chunk_kvrange: int = 1  # the same for a chunk that is run once more when clean; -1 = last of the list
    clean_t: float = 0.9999
    time_transform: TimeTransform = "sd3"
    shortcut_mode: str = "8,16,16"  # which steps the 12-step mode keeps
    distilled: bool = False  # one pass per call, no three-way guidance
    nearly_clean_threshold: float = 0.3  # distilled: past this time the first chunk is run alone too
    nearly_clean_scale: float = 0.7  # distilled: weight of the chunk seen with its past
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    latent_scale: float = 0.18215
    fps: int = 24
    temporal_factor: int = 4

    def __post_init__(self) -> None:
        steps, ranges = self.num_inference_steps, self.noise2clean_kvrange
        scales = {len(self.cfg_t_range), len(self.prev_chunk_scales), len(self.text_scales)}
        rules = (
            (self.window_size >= 1 and self.chunk_width >= 1, "window_size and chunk_width must be positive"),
            (
                self.window_size < 1 or (steps > 0 and steps % self.window_size == 0),
                f"num_inference_steps {steps} is not a positive multiple of window_size {self.window_size}",
            ),
            (
                not ranges or steps % len(ranges) == 0,
                f"num_inference_steps {steps} is not a multiple of the {len(ranges)} entries of noise2clean_kvrange",
            ),
            (all(r >= 1 for r in ranges), "noise2clean_kvrange counts the chunk itself: every entry must be >= 1"),
            (self.clean_chunk_kvrange == -1 or self.clean_chunk_kvrange >= 1, "clean_chunk_kvrange must be -1 or >= 1"),
            (len(scales) == 1, "cfg_t_range, prev_chunk_scales and text_scales differ in length"),
            (self.shortcut_mode in ("8,16,16", "16,16,8"), "shortcut_mode must be '8,16,16' or '16,16,8'"),
            (self.time_transform in ("sd3", "square", "identity"), "time_transform must be sd3, square or identity"),
        )
        broken = [text for holds, text in rules if not holds]
        if broken:
            raise MagiConfigError("MagiSettings", "; ".join(broken), "distilled models run 8, 12, 16, 32 or 64 steps")


@dataclass(frozen=True, slots=True)
class OfficialConfig:
    """An official `*_config.json`: the model, the sampling settings, the default video and the weight folders."""

    model: MagiModelConfig
    settings: MagiSettings
    height: int
    width: int
    num_frames: int
    seed: int
    fp8: bool
    load: str
    t5_pretrained: str
    vae_pretrained: str


_IGNORED_MODEL = {"model_name", "params_dtype", "apply_layernorm_1p"}
_RUNTIME = {
    "cfg_number", "cfg_t_range", "prev_chunk_scales", "text_scales", "noise2clean_kvrange", "clean_chunk_kvrange",
    "clean_t", "seed", "num_frames", "video_size_h", "video_size_w", "num_steps", "window_size", "fps", "chunk_width",
    "t5_pretrained", "t5_device", "vae_pretrained", "scale_factor", "temporal_downsample_factor", "load",
}  # fmt: skip
_ENGINE = {
    "distributed_backend", "distributed_timeout_minutes", "pp_size", "cp_size", "cp_strategy", "ulysses_overlap_degree",
    "fp8_quant", "distill_nearly_clean_chunk_threshold", "shortcut_mode", "distill", "kv_offload", "enable_cuda_graph",
}  # fmt: skip
_DEFAULT_RUNTIME: dict[str, object] = {
    # The defaults of the official dataclass, which differ from the shipped files.
    "cfg_t_range": (0.0, 0.0217, 0.1, 0.3, 0.999),
    "prev_chunk_scales": (1.5,) * 5,
    "text_scales": (7.5,) * 5,
    "noise2clean_kvrange": (),
    "clean_chunk_kvrange": -1,
    "clean_t": 1.0,
    "seed": 1234,
    "num_frames": 128,
    "num_steps": 64,
    "window_size": 4,
    "fps": 24,
    "chunk_width": 6,
    "scale_factor": 0.18215,
    "temporal_downsample_factor": 4,
    "load": "",
    "t5_pretrained": "",
    "vae_pretrained": "",
}


def _check_names(place: str, given: dict[str, object], known: set[str]) -> None:
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(sorted(known))}"
            raise MagiConfigError(place, f"unknown field `{name}`", remedy)


def model_config_from_official(given: dict[str, object], place: str = "model_config") -> MagiModelConfig:
    """The `model_config` object of an official file. Raises MagiConfigError (MC0721)."""
    names = {f.name for f in fields(MagiModelConfig)}
    _check_names(place, given, names | _IGNORED_MODEL)
    if given.get("apply_layernorm_1p", True) is not True:
        raise MagiConfigError(place, "apply_layernorm_1p is not true", "every released MAGI-1 checkpoint has it true")
    missing = [n for n in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads") if n not in given]
    if missing:
        raise MagiConfigError(place, f"missing fields: {', '.join(missing)}", "take the file from example/")
    return MagiModelConfig(**{k: v for k, v in given.items() if k in names})  # type: ignore[arg-type]


def read_official_config(path: Path | str) -> OfficialConfig:
    """Reads an `example/*/…_config.json` of the official repository.

    Raises MagiConfigError (MC0721): unreadable file, unknown or missing fields, or a contradiction between
    `cfg_number` and the kind of model.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise MagiConfigError(str(path), str(error), "give the path of an official *_config.json") from error
    sections = {"model_config", "runtime_config", "engine_config"}
    if not isinstance(data, dict) or not sections <= set(data):
        missing = ", ".join(sorted(sections - set(data if isinstance(data, dict) else ())))
        raise MagiConfigError(str(path), f"missing sections: {missing}", "give the path of an official *_config.json")
    runtime, engine = data["runtime_config"], data["engine_config"]
    _check_names(f"{path}: runtime_config", runtime, _RUNTIME)
    _check_names(f"{path}: engine_config", engine, _ENGINE)
    return _assemble(path, data["model_config"], _DEFAULT_RUNTIME | runtime, engine)


def _assemble(path: Path, model: dict, runtime: dict, engine: dict) -> OfficialConfig:
    fp8, distilled = bool(engine.get("fp8_quant", False)), bool(engine.get("distill", False))
    expected = 1 if fp8 or distilled else 3
    if runtime.get("cfg_number") != expected:
        raise MagiConfigError(
            f"{path}: runtime_config.cfg_number",
            f"{runtime.get('cfg_number')} with distill={distilled}, fp8_quant={fp8}",
            f"set it to {expected}",
        )
    if fp8 and not distilled:
        distilled = True  # the official loop takes its single pass from cfg_number alone
    settings = MagiSettings(
        num_inference_steps=runtime["num_steps"],
        window_size=runtime["window_size"],
        chunk_width=runtime["chunk_width"],
        noise2clean_kvrange=tuple(runtime["noise2clean_kvrange"]),
        clean_chunk_kvrange=runtime["clean_chunk_kvrange"],
        clean_t=runtime["clean_t"],
        shortcut_mode=engine.get("shortcut_mode", "8,16,16"),
        distilled=distilled,
        nearly_clean_threshold=engine.get("distill_nearly_clean_chunk_threshold", 0.3),
        cfg_t_range=tuple(runtime["cfg_t_range"]),
        prev_chunk_scales=tuple(runtime["prev_chunk_scales"]),
        text_scales=tuple(runtime["text_scales"]),
        latent_scale=runtime["scale_factor"],
        fps=runtime["fps"],
        temporal_factor=runtime["temporal_downsample_factor"],
    )
    return OfficialConfig(
        model=model_config_from_official(model, f"{path}: model_config"),
        settings=settings,
        height=runtime["video_size_h"],
        width=runtime["video_size_w"],
        num_frames=runtime["num_frames"],
        seed=runtime["seed"],
        fp8=fp8,
        load=runtime["load"],
        t5_pretrained=runtime["t5_pretrained"],
        vae_pretrained=runtime["vae_pretrained"],
    )
