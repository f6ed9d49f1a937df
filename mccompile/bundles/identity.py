"""What a bundle was made for: the versions, the machine and the model, which hashes identify."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from mccompile.backend.isa import cpu_features
from mccompile.resources import own_version

WHOLE = 64 * 2**20  # larger weight files are hashed by their header and by samples
SAMPLES, SAMPLE = 256, 64 * 2**10


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything that compiled code depends on besides the model. gpu: name and compute capability, or ""."""

    mccompile: str
    torch: str
    diffusers: str
    system: str
    machine: str
    gpu: str
    cpu: tuple[str, ...]

    def differences(self, here: Environment) -> list[tuple[str, str, str]]:
        """(what, made for, here) where code made for `self` must not run here."""
        found = [
            (name, str(getattr(self, name)), str(getattr(here, name)))
            for name in ("mccompile", "torch", "diffusers", "system", "machine", "gpu")
            if getattr(self, name) != getattr(here, name)
        ]
        missing = sorted(set(self.cpu) - set(here.cpu))
        if missing:
            found.append(("CPU instructions", " ".join(missing), "not available"))
        return found

    def as_versions_of(self, here: Environment) -> Environment:
        """The versions of this on the machine of `here`: what graphs depend on, which are no code."""
        return replace(here, mccompile=self.mccompile, torch=self.torch, diffusers=self.diffusers)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights: size, SHA-256 of its safetensors header, and of its content (samples of it if large)."""

    name: str
    size: int
    header: str
    content: str


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The transformer of a pipeline folder. reference: how the user named the model; folder: of the transformer.

    folder is "" for a model that was made in memory: then only class, dtype and shapes are compared.
    """

    reference: str
    folder: str
    model_class: str
    dtype: str
    shapes: str
    config: str
    weights: tuple[WeightFile, ...]

    def differences(self, other: ModelIdentity) -> list[str]:
        """What `other` (the model at hand) has that is not as here, in words."""
        found = []
        if self.model_class != other.model_class:
            found.append(f"it is a {other.model_class}, not a {self.model_class}")
        if self.dtype != other.dtype:
            found.append(f"its weights are {other.dtype}, not {self.dtype}")
        found += ["the shapes of its weights differ"] if self.shapes != other.shapes else []
        found += ["its configuration differs"] if self.config != other.config else []
        if self.folder and other.folder:
            here = {w.name: w for w in other.weights}
            for file in self.weights:
                if file.name not in here:
                    found.append(f"{file.name} is missing")
                elif file != here[file.name]:
                    found.append(f"{file.name} has other content")
            found += [f"{n} is additional" for n in sorted(set(here) - {w.name for w in self.weights})]
        return found


def environment(device: str) -> Environment:
    """This process on this machine, for code that runs on `device` ("cpu", "cuda")."""
    gpu = ""
    if device == "cuda":
        gpu = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}"
    return Environment(
        mccompile=own_version(), torch=torch.__version__, diffusers=version("diffusers"),
        system=platform.system(), machine=platform.machine(), gpu=gpu, cpu=cpu_features(),
    )  # fmt: skip


def identify(model: torch.nn.Module, reference: str = "", folder: Path | None = None) -> ModelIdentity:
    """The identity of a loaded transformer. folder: the folder with its config.json and weights, if there is one.

    Raises OSError for a folder that cannot be read.
    """
    shapes = "\n".join(f"{n} {tuple(t.shape)} {t.dtype}" for n, t in sorted(model.state_dict().items()))
    # the folder a model came from and the version that saved it are part of no graph
    config = {k: v for k, v in dict(getattr(model, "config", {})).items() if not k.startswith("_")}
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return ModelIdentity(
        reference=reference,
        folder="" if folder is None else str(folder.resolve()),
        model_class=type(model).__name__,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        shapes=hashlib.sha256(shapes.encode()).hexdigest(),
        config=hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        weights=tuple(_weight_file(f) for f in files),
    )


def _weight_file(path: Path) -> WeightFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = hashlib.sha256(file.read(min(length, size))).hexdigest()
        content = hashlib.sha256()
        for start, count in _parts(size):
            file.seek(start)
            content.update(file.read(count))
    return WeightFile(path.name, size, header, content.hexdigest())


def _parts(size: int) -> Iterator[tuple[int, int]]:
    if size <= WHOLE:
        yield 0, size
        return
    for i in range(SAMPLES):
        yield i * (size - SAMPLE) // (SAMPLES - 1), SAMPLE
