"""Peak accelerator memory of a pipeline folder, by calculation from its configuration: no weight is read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from mccompile.generate.errors import OptionRefused
from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.memory import MemoryEstimate, estimate_memory
from mccompile.models.magi.scheduler import MagiScheduler


def predict_memory(folder: Path, height: int, width: int, frames: int) -> MemoryEstimate:
    """Bytes at the worst moment of a run in bfloat16, text encoder and VAE on the host.

    height, width: pixels; frames: video frames. Raises OptionRefused (MC0705) for a pipeline without a formula.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != "MagiPipeline":
        why = f"{index.get('_class_name')} has no memory formula"
        raise OptionRefused("--stage memory", why, "name a MAGI-1 folder with --model")
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    known = {f.name for f in fields(MagiModelConfig)}
    scheduler = MagiScheduler.from_pretrained(folder / "scheduler")
    model = MagiModelConfig(**{k: v for k, v in config.items() if k in known})
    return estimate_memory(model, scheduler.settings, height, width, frames)


def show_memory(estimate: MemoryEstimate) -> str:
    """A line per part and the total, in GB of 10**9 bytes."""
    parts = {f.name.replace("_", " "): getattr(estimate, f.name) for f in fields(estimate)} | {"total": estimate.total}
    return "".join(f"{name:14}{size / 1e9:8.2f} GB\n" for name, size in parts.items())
