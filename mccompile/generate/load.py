"""Loads pipelines by folder or by name. The embedded model and every other diffusers folder take the same path."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from mccompile.generate.errors import UnknownModel
from mccompile.generate.hollow import has_weights, load_hollow
from mccompile.generate.placement import DTYPES, Placement
from mccompile.generate.placement import Placement as Place
from mccompile.models.embedded import EMBEDDED_FOLDER
from mccompile.models.magi import MagiPipeline

__all__ = ["Place"]  # the name of Placement in 0.1.0, for the scripts that were written then

EMBEDDED = "embedded"
OWN_MODELS = "mccompile.models."
MALFORMED = (
    OSError, ValueError, LookupError, AttributeError, ImportError, TypeError, ArithmeticError, RuntimeError,
    SafetensorError,
)  # fmt: skip
"""What loaders run into where the files of a folder are not what its model_index.json says."""


def find_folder(name: str) -> Path:
    """The folder of a model: `embedded`, a path, or a repository in the local Hugging Face cache.

    Nothing is downloaded. Raises UnknownModel.
    """
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    if not name.strip():
        raise UnknownModel(name, "the name is empty")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UnknownModel(name, "the folder has no model_index.json")
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/")):
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            raise UnknownModel(name, "neither a folder nor in the local Hugging Face cache") from None
    raise UnknownModel(name, "there is no such folder")


def cached_pipelines() -> tuple[str, ...]:
    """Repositories in the local Hugging Face cache that hold a pipeline, sorted."""
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return ()
    index = "model_index.json"
    return tuple(
        sorted(
            repo.repo_id
            for repo in cache.repos
            if repo.repo_type == "model" and any(f.file_name == index for r in repo.revisions for f in r.files)
        )
    )


def load_pipeline(folder: Path, place: Placement, hollow: bool = False) -> DiffusionPipeline:
    """The pipeline of a folder by its model_index.json; the VAE stays in float32. Raises UnknownModel.

    hollow: a folder of configurations without weights will do. What comes of it can be examined, and not run.
    """
    kind = _pipeline_class(folder)
    if hollow and not has_weights(folder):
        with _quiet(), _as_unknown(folder):
            return load_hollow(folder, kind, DTYPES[place.dtype])
    dtypes = {"default": DTYPES[place.dtype], "vae": torch.float32}
    with _quiet(), _as_unknown(folder):
        pipe = kind.from_pretrained(folder, dtype=dtypes, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if place.cpu_offload:
        pipe.model_cpu_offload_seq = "text_encoder->vae"
        pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, "transformer"]
        pipe.enable_model_cpu_offload(device=place.device)
    else:
        pipe.to(place.device)
    return pipe


@contextlib.contextmanager
def _as_unknown(folder: Path) -> Iterator[None]:
    """What loaders raise inside is raised as UnknownModel."""
    try:
        yield
    except UnknownModel:
        raise
    except MALFORMED as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownModel(str(folder), f"diffusers cannot load it ({first})") from error


def _pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """Our own class where the index names one, else diffusers finds it; our component classes are imported for it."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnknownModel(str(folder), f"its model_index.json cannot be read ({error})") from None
    if not isinstance(index, dict):
        raise UnknownModel(str(folder), "its model_index.json is not an object")
    for value in index.values():
        if isinstance(value, list) and value and str(value[0]).startswith(OWN_MODELS):
            try:
                importlib.import_module(value[0])
            except ImportError as error:
                raise UnknownModel(str(folder), f"its model_index.json names no module of ours ({error})") from None
    return MagiPipeline if index.get("_class_name") == MagiPipeline.__name__ else DiffusionPipeline


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of loaders, no remark that a component is of another class than diffusers expects."""
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
