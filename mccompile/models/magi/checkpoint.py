"""Official checkpoints: safetensors files, sharded, optionally zstd-compressed; loaded strictly, with a report."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.errors import MagiCheckpointError, MagiConfigError, MagiLayoutError
from mccompile.models.magi.transformer import MagiTransformer3DModel
from mccompile.models.magi.vae import AutoencoderKLMagi

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_MAGI_1_1 = "videodit_blocks.layers.self_attention.linear_qkv.weight"
_FP8_SUFFIXES = (".weight_scale", ".input_scale", ".smooth_scale")
_LISTED = 8  # keys named per kind in a report


@dataclass(frozen=True, slots=True)
class KeyReport:
    """How the tensors of a checkpoint differ from those of a model."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, model's shape, checkpoint's shape

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        shapes = [f"{name}: model {list(want)}, checkpoint {list(got)}" for name, want, got in self.misshaped]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("misshaped", shapes))
        return "; ".join(f"{len(names)} {kind}: {_shortened(names)}" for kind, names in kinds if names) or "none"


def _shortened(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def compare_keys(model: nn.Module, found: Mapping[str, Sequence[int]]) -> KeyReport:
    """`found`: name -> shape of the checkpoint's tensors."""
    want = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    return KeyReport(
        missing=tuple(k for k in want if k not in found),
        unexpected=tuple(k for k in found if k not in want),
        misshaped=tuple((k, s, tuple(found[k])) for k, s in want.items() if k in found and s != tuple(found[k])),
    )


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """The safetensors file itself, or a temporary copy decompressed from `path`.zst."""
    if path.is_file():
        yield path
        return
    packed = path.with_name(path.name + ".zst")
    if not packed.is_file():
        raise MagiCheckpointError(str(path), "no such file, compressed (.zst) or not", "complete the download")
    try:
        import zstandard
    except ImportError as error:
        raise MagiCheckpointError(
            str(packed),
            "it is compressed and the package zstandard is not installed",
            f"run `zstd -d {packed}`, or `pip install zstandard`",
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name
        with packed.open("rb") as source, plain.open("wb") as target:
            zstandard.ZstdDecompressor().copy_stream(source, target)
        yield plain


def _shards(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _SINGLE]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise MagiCheckpointError(str(index), f"not an index of shards: {error!r}", "download it again") from error
    return [folder / name for name in sorted(names)]


def read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every entry, one file after the other. Raises MagiCheckpointError (MC0722)."""
    for path in files:
        with _plain_file(path) as plain:
            try:
                with safe_open(plain, "pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - not a mapping
                        yield name, shard.get_tensor(name)
            except SafetensorError as error:
                raise MagiCheckpointError(str(path), f"not a safetensors file: {error}", "download it again") from error


def refuse_other_layouts(place: str, name: str, dtype: torch.dtype) -> None:
    """Raises MagiLayoutError (MC0723) for a tensor that only MAGI-1.1 or a quantised checkpoint has."""
    if name == _MAGI_1_1:
        raise MagiLayoutError(
            place,
            "MAGI-1.1: layers are stacked and the qkv projection is fused",
            "use a MAGI-1 checkpoint (ckpt/magi/4.5B_base, 4.5B_distill, 24B_base or 24B_distill)",
        )
    if name.endswith(_FP8_SUFFIXES) or dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        raise MagiLayoutError(
            place, f"`{name}` is quantised to fp8, which needs its own kernels", "use the checkpoint without `_quant`"
        )


def _stays_float32(model: nn.Module, name: str) -> bool:
    kept = model._keep_in_fp32_modules or ()
    return any(part in kept for part in name.split("."))


def _assign(model: nn.Module, files: Sequence[Path], place: str, dtype: torch.dtype) -> None:
    """Strictly loads `files` into a model on the meta device, in `dtype` but for the parts kept in float32."""
    state: dict[str, Tensor] = {}
    for name, tensor in read_tensors(files):
        refuse_other_layouts(place, name, tensor.dtype)
        state[name] = tensor.to(torch.float32 if _stays_float32(model, name) else dtype)
    report = compare_keys(model, {k: v.shape for k, v in state.items()})
    if not report.ok:
        raise MagiCheckpointError(place, str(report), "check that the configuration is the one of this checkpoint")
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()


def load_transformer(
    path: Path | str, config: MagiModelConfig, dtype: torch.dtype = torch.bfloat16, distilled: bool = False
) -> MagiTransformer3DModel:
    """The transformer from an official checkpoint: a safetensors file, or a folder of them.

    The folder may be the one that holds the shards, or its parent (then inference_weight[.distill] is taken).
    Raises MagiCheckpointError (MC0722) with a KeyReport, MagiLayoutError (MC0723) for MAGI-1.1 and fp8.
    """
    path = Path(path)
    inner = path / ("inference_weight.distill" if distilled else "inference_weight")
    folder = inner if inner.is_dir() else path
    files = [folder] if folder.is_file() else _shards(folder)
    with torch.device("meta"):
        model = MagiTransformer3DModel(**asdict(config))
    _assign(model, files, str(path), dtype)
    return model


_VAE_FIXED = {
    "double_z": True, "qkv_bias": True, "with_cls_token": True, "ln_in_attn": True, "conv_last_layer": True,
    "norm_code": False, "use_rope": False, "use_final_proj": False,
}  # fmt: skip
_VAE_ARGUMENTS = (
    "embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "patch_length", "in_chans", "z_chans", "video_size",
    "video_length",
)  # fmt: skip


def vae_arguments(config: Mapping[str, object], place: str) -> dict[str, object]:
    """Arguments of AutoencoderKLMagi from the official VAE's config (its `ddconfig`, or that object itself).

    Other names in it are ignored: the file is not ours, and the strict loading of the weights is the check.
    Raises MagiConfigError (MC0721) for a missing size or a variant that was not released.
    """
    nested = config.get("ddconfig", config)
    if not isinstance(nested, Mapping):
        raise MagiConfigError(place, "ddconfig is not an object", "take config.json from ckpt/vae")
    for name, value in _VAE_FIXED.items():
        if nested.get(name, value) != value:
            raise MagiConfigError(place, f"{name} is {nested[name]}", f"only {name} = {value} was released")
    missing = [n for n in _VAE_ARGUMENTS if n not in nested]
    if missing:
        raise MagiConfigError(place, f"missing fields: {', '.join(missing)}", "take config.json from ckpt/vae")
    return {name: nested[name] for name in _VAE_ARGUMENTS}


def load_vae(folder: Path | str, dtype: torch.dtype = torch.bfloat16) -> AutoencoderKLMagi:
    """The VAE from ckpt/vae: config.json and diffusion_pytorch_model.safetensors. Raises as load_transformer does."""
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise MagiCheckpointError(str(folder / "config.json"), str(error), "give the folder ckpt/vae") from error
    with torch.device("meta"):
        model = AutoencoderKLMagi(**vae_arguments(config, str(folder / "config.json")))
    _assign(model, [folder / "diffusion_pytorch_model.safetensors"], str(folder), dtype)
    return model
