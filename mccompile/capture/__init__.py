"""Turns a model into a CapturedModel: export, transformer blocks, the token axis of every value, partial forms."""

from mccompile.capture.batch import capture_batched
from mccompile.capture.capture import capture
from mccompile.capture.errors import CallError, CaptureError
from mccompile.capture.run import FullRun, block_weights, flat_inputs, run_full
from mccompile.capture.split import split_prelude
from mccompile.capture.types import (
    BlockKind,
    BlockSite,
    BufferSpec,
    CapturedModel,
    OneFrame,
    PlacedGrid,
    Port,
    Refusal,
    TokenGrid,
    ToldGrid,
)

__all__ = [
    "BlockKind",
    "BlockSite",
    "BufferSpec",
    "CallError",
    "CaptureError",
    "CapturedModel",
    "FullRun",
    "OneFrame",
    "PlacedGrid",
    "Port",
    "Refusal",
    "TokenGrid",
    "ToldGrid",
    "block_weights",
    "capture",
    "capture_batched",
    "flat_inputs",
    "run_full",
    "split_prelude",
]
