"""The peers: how each is switched on and off on a pipeline with a SkyReels-V2 transformer."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn


@dataclass(frozen=True, slots=True)
class Setup:
    """What a peer may need to know. rows: calls of the scheduler's loop. ratios: MagCache's, of both branches."""

    pipe: DiffusionPipeline
    rows: int
    ratios: Sequence[float]


@dataclass(frozen=True, slots=True)
class Peer:
    """One setting of one method.

    registered: it asks diffusers' registry for the block's class. inside: it hooks modules inside the blocks.
    """

    name: str
    kind: str
    enable: Callable[[Setup], object]
    disable: Callable[[DiffusionPipeline], object]
    registered: bool = False
    inside: bool = False
    first: bool = False  # the setting that a quick run has


def _hook(
    name: str, kind: str, config: Callable[[Setup], object], registered: bool, first: bool = False
) -> Peer:
    def enable(setup: Setup) -> None:
        setup.pipe.transformer.enable_cache(config(setup))
        if not hooked(setup.pipe.transformer):
            raise RuntimeError("it hooks none of this model's modules, and says nothing")

    def disable(pipe: DiffusionPipeline) -> None:
        if pipe.transformer.is_cache_enabled:
            pipe.transformer.disable_cache()

    return Peer(name, kind, enable, disable, registered, not registered, first)


def hooked(transformer: nn.Module) -> int:
    """Modules inside the transformer that carry a hook of diffusers'."""
    registries = (getattr(m, "_diffusers_hook", None) for m in transformer.modules() if m is not transformer)
    return sum(bool(r.hooks) for r in registries if r is not None)


def _cache_dit(threshold: float, taylor: bool, first: bool = False) -> Peer:
    def enable(setup: Setup) -> None:
        library, transformer = cache_dit(), setup.pipe.transformer
        adapter = library.BlockAdapter(
            pipe=setup.pipe, transformer=transformer, blocks=transformer.blocks,
            forward_pattern=library.ForwardPattern.Pattern_2, has_separate_cfg=True,
        )  # fmt: skip
        config = library.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=threshold, max_warmup_steps=5,
            enable_separate_cfg=True, num_inference_steps=setup.rows,
        )  # fmt: skip
        calibrator = library.TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
        library.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)

    kind = "cache-dit DBCache + TaylorSeer" if taylor else "cache-dit DBCache"
    return Peer(f"{kind} {threshold:g}", kind, enable, lambda pipe: cache_dit().disable_cache(pipe), first=first)


def cache_dit() -> ModuleType:
    """The library, imported only where a peer runs: it is the extra `peers`."""
    return importlib.import_module("cache_dit")


def _pab(setup: Setup) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: setup.pipe._current_timestep,
    )


def _faster(setup: Setup) -> FasterCacheConfig:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: setup.pipe._current_timestep,
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,  # branches come in calls of their own here, and it wants them in one batch
        tensor_format="BCFHW",
    )


def _mag(threshold: float) -> Callable[[Setup], MagCacheConfig]:
    return lambda setup: MagCacheConfig(threshold, 4, 0.2, setup.rows, list(setup.ratios))


def _taylor(interval: int, rows_before: int = 3) -> Callable[[Setup], TaylorSeerCacheConfig]:
    """Attention and feed-forward by name: without names it looks for classes of attention that are not this model's."""
    modules = [r"blocks\.\d+\.(attn1|attn2|ffn)"]
    return lambda _: TaylorSeerCacheConfig(
        interval, rows_before, taylor_factors_dtype=torch.float32, cache_identifiers=modules
    )


PEERS: tuple[Peer, ...] = (
    *(
        _hook(f"FirstBlockCache {t:g}", "FirstBlockCache", lambda _, t=t: FirstBlockCacheConfig(t), True, t == 0.08)  # type: ignore[misc]
        for t in (0.03, 0.08, 0.15)
    ),
    *(_hook(f"MagCache {t:g}", "MagCache", _mag(t), True, t == 0.06) for t in (0.06, 0.12, 0.24)),
    *(_hook(f"TaylorSeer {n}", "TaylorSeer", _taylor(n), False, n == 3) for n in (2, 3, 5)),
    _hook("PyramidAttentionBroadcast", "PyramidAttentionBroadcast", _pab, False, True),
    _hook("FasterCache", "FasterCache", _faster, False, True),
    *(_cache_dit(t, False, t == 0.08) for t in (0.03, 0.08, 0.15)),
    *(_cache_dit(t, True, t == 0.08) for t in (0.03, 0.08, 0.15)),
)


def register_blocks(pipe: DiffusionPipeline) -> str:
    """Registers the transformer's block with diffusers; returns what diffusers says without that, "" if it knows it."""
    block = type(pipe.transformer.blocks[0])
    try:
        TransformerBlockRegistry.get(block)
    except ValueError as error:
        TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=0))
        return f"{type(error).__name__}: {error}"
    return ""


def calibrated_ratios(pipe: DiffusionPipeline, rows: int, generate: Callable[[], object]) -> tuple[float, ...]:
    """MagCache's magnitude ratios of this pipeline, from its own calibration, which prints them."""
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=rows))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            generate()
    finally:
        pipe.transformer.disable_cache()
    found = [line for line in printed.getvalue().splitlines() if line.startswith("[") and not line.startswith("[Mag")]
    return tuple(float(x) for x in ast.literal_eval(found[0]))
