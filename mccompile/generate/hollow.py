"""Loads a pipeline from a folder that has configurations and no weights. Nothing is allocated at its real size.

The transformer's and the VAE's weights are hollow (capture/shallow.py). Text encoders give zeros of the right sizes:
each is run on tensors that have shapes and no memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from mccompile.capture.shallow import hollow
from mccompile.generate.errors import UnknownModel

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def has_weights(folder: Path) -> bool:
    """Whether the folder of a pipeline has weights of its transformer."""
    parts = [folder / name for name in ("transformer", "transformer_2")]
    return any(next(part.glob(pattern), None) is not None for part in parts for pattern in WEIGHTS)


def load_hollow(folder: Path, kind: type[DiffusionPipeline], dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a folder without weights. Raises UnknownModel (MC0704) for what its index does not say.

    kind: its class, or DiffusionPipeline for one of diffusers that the index names.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    own = None if kind is DiffusionPipeline else kind
    pipeline = own or getattr(diffusers, str(index.get("_class_name")), None)
    if pipeline is None:
        raise UnknownModel(str(folder), f"diffusers has no {index.get('_class_name')}")
    parts: dict[str, object] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        parts[name] = _part(folder / name, value, dtype) if isinstance(value, list) else value
    pipe = pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _part(folder: Path, value: list[str | None], dtype: torch.dtype) -> object:
    library, name = value
    if library is None or name is None:
        return None
    kind = getattr(importlib.import_module(library), name)
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(folder, local_files_only=True)
    own = issubclass(kind, ModelMixin)
    with _unfilled():
        made = kind.from_config(kind.load_config(folder)) if own else kind(kind.config_class.from_pretrained(folder))
    filled = _filled(made, dtype, getattr(kind, "_keep_in_fp32_modules", None) or ())
    return filled if own else _Unread(filled, dtype)


class _Unread(nn.Module):
    """Stands for a text encoder: zeros of the sizes that it would give."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self._dtype = model, dtype

    @property
    def config(self) -> object:
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, *args: object, **kwargs: object) -> object:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            given = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in leaves]
            faked, named = pytree.tree_unflatten(given, spec)
            made = self.model(*faked, **named)
        return pytree.tree_map(_zeros, made)


def _zeros(value: object) -> object:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _unfilled() -> Iterator[None]:
    """Weights of modules that are made inside have no memory; buffers have their values."""
    own = nn.Module.register_parameter

    def register(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        own(module, name, None if value is None else nn.Parameter(value.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = own


def _filled(model: nn.Module, dtype: torch.dtype, precise: Sequence[str]) -> nn.Module:
    """The model with hollow weights. precise: names of modules whose weights stay in float32."""
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                kept = any(word in f"{path}.{name}".split(".") for word in precise)
                module._parameters[name] = hollow(weight.shape, torch.float32 if kept else dtype)
    return model.eval()
