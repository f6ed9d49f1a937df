"""Calculates memory: of MAGI-1 from its configuration alone, and of what a policy keeps on any pipeline from shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from mccompile import api
from mccompile.generate.errors import OptionRefused
from mccompile.ir import PolicyIR
from mccompile.models.magi.config import MagiModelConfig
from mccompile.models.magi.memory import MemoryEstimate, estimate_memory
from mccompile.models.magi.scheduler import MagiScheduler
from mccompile.pipelines.budgets import keeping_for
from mccompile.pipelines.probe import SIZES
from mccompile.policy.budget import in_words
from mccompile.runtime.budget import Keeping

MAGI = "MagiPipeline"


def has_formula(folder: Path) -> bool:
    """Whether `predict_memory` knows pipelines of this kind."""
    return bool(_index(folder).get("_class_name") == MAGI)


def _index(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def predict_memory(folder: Path, height: int, width: int, frames: int) -> MemoryEstimate:
    """Bytes at the worst moment of a run in bfloat16, text encoder and VAE on the host.

    height, width: pixels; frames: video frames. Raises OptionRefused (MC0705) for a pipeline without a formula.
    """
    if not has_formula(folder):
        why = f"{_index(folder).get('_class_name')} has no memory formula"
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


def predict_kept(
    pipe: object, policy: PolicyIR, size: tuple[int, int, int] | None, parameters: Mapping[str, float]
) -> dict[str, Keeping]:
    """How a pipeline keeps what the policy keeps, and its bytes; no transformer is run at that size.

    Of each transformer, by its place: where two take turns, what the first one kept is freed when the second begins.
    The place of the only one is "". size: height and width in pixels and a number of video frames; None: the
    pipeline's own. Raises what `api.prepare` raises, and BudgetUnmet (MC0504).
    """
    made = api.prepare(pipe)
    return {slot or "": kept_by(pipe, policy, made.of(slot), size, parameters) for slot in api.slots_in(pipe)}


def kept_by(
    pipe: object, policy: PolicyIR, made: api.Prepared, size: tuple[int, int, int] | None,
    parameters: Mapping[str, float],
) -> Keeping:
    """The same of a pipeline that has been captured. Raises BudgetUnmet (MC0504)."""  # fmt: skip
    return keeping_for(pipe, policy, made.model, made.prefixes, made.calls, call_at(size), parameters)


def call_at(size: tuple[int, int, int] | None) -> Mapping[str, object]:
    """The arguments of a pipeline's call that give a size: height, width, frames. None: the pipeline's own."""
    if size is None:
        return {}
    return dict(zip(SIZES[:2], size[:2], strict=True)) | dict.fromkeys(SIZES[2:], size[2])


def show_kept(keeping: Keeping) -> str:
    """A line per kind of kept tensor, their sum, what of it is on the model's device, and how all is kept."""
    bytes_kept = keeping.predicted
    assert bytes_kept is not None
    parts = {f.name.replace("_", " "): getattr(bytes_kept, f.name) for f in fields(bytes_kept)}
    working = parts.pop("working")
    parts |= {"kept": bytes_kept.total, "working": working, "on the device": bytes_kept.on_device(keeping.cache)}
    if keeping.cache.budget is not None:
        parts["budget"] = keeping.cache.budget
    lines = [f"{name:14}{size / 1e6:12.3f} MB\n" for name, size in parts.items()]
    return "".join(lines) + in_words(keeping.cache) + "\n"
