"""The peers: how each is switched on and off on a pipeline with a SkyReels-V2 or Wan transformer."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
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


def _hook(name: str, kind: str, config: Callable[[Setup], object], registered: bool, first: bool = False) -> Peer:
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


def _first_block(threshold: float, first: bool = False) -> Peer:
    kind = "FirstBlockCache"
    return _hook(f"{kind} {threshold:g}", kind, lambda _: FirstBlockCacheConfig(threshold), True, first)


def _mag(threshold: float, in_a_row: int, first: bool = False) -> Peer:
    """in_a_row: the most steps skipped one after the other (K of the paper)."""

    def config(setup: Setup) -> MagCacheConfig:
        return MagCacheConfig(threshold, in_a_row, 0.2, setup.rows, list(setup.ratios))

    return _hook(f"MagCache {threshold:g}, {in_a_row}", "MagCache", config, True, first)


def _taylor(interval: int, first: bool = False, rows_before: int = 3) -> Peer:
    """Attention and feed-forward by name: without names it looks for classes of attention that are not this model's."""

    def config(_: Setup) -> TaylorSeerCacheConfig:
        modules = [r"blocks\.\d+\.(attn1|attn2|ffn)"]
        return TaylorSeerCacheConfig(
            interval, rows_before, taylor_factors_dtype=torch.float32, cache_identifiers=modules
        )

    return _hook(f"TaylorSeer {interval}", "TaylorSeer", config, False, first)


def _sea(threshold: float, in_a_row: int, first: bool = False) -> Peer:
    """It needs the latents, which its own adapter finds in Wan's transformer only."""

    def config(_: Setup) -> SeaCacheConfig:
        return SeaCacheConfig(threshold, max_consecutive_cached=in_a_row, raw_vision_callback=_latents)

    return _hook(f"SeaCache {threshold:g}, {in_a_row}", "SeaCache", config, True, first)


def _latents(_: nn.Module, __: tuple[object, ...], call: Mapping[str, object]) -> list[torch.Tensor]:
    latents = call["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    return list(latents.unbind(0))


def _pab(self_attention: int, cross_attention: int, first: bool = False) -> Peer:
    """Attention computed once in so many calls."""

    def config(setup: Setup) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self_attention,
            cross_attention_block_skip_range=cross_attention,
            current_timestep_callback=lambda: setup.pipe._current_timestep,
        )

    kind = "PyramidAttentionBroadcast"
    return _hook(f"{kind} {self_attention}, {cross_attention}", kind, config, False, first)


def _faster(interval: int, first: bool = False) -> Peer:
    """Attention computed once in so many calls. One branch of guidance only: it wants both in one batch."""

    def config(setup: Setup) -> FasterCacheConfig:
        return FasterCacheConfig(
            spatial_attention_block_skip_range=interval,
            current_timestep_callback=lambda: setup.pipe._current_timestep,
            attention_weight_callback=lambda _: 0.5,
            is_guidance_distilled=True,
            tensor_format="BCFHW",
        )

    return _hook(f"FasterCache {interval}", "FasterCache", config, False, first)


# Settings whose videos lie between 25 and 55 dB from vanilla's, as far as the method reaches.
SKYREELS: tuple[Peer, ...] = (
    *(_first_block(t, t == 0.1) for t in (0.05, 0.08, 0.1, 0.2)),
    *(_mag(t, k, t == 0.06) for t, k in ((0.02, 2), (0.06, 3), (0.24, 6), (1.0, 12))),
    *(_taylor(n, n == 3) for n in (2, 3, 6)),
    _sea(0.25, 2, True),
    _pab(2, 3, True),
    _faster(2, True),
    *(_cache_dit(t, False, t == 0.1) for t in (0.05, 0.1, 0.2, 0.3)),
    *(_cache_dit(t, True, t == 0.1) for t in (0.05, 0.1, 0.3)),
)
WAN: tuple[Peer, ...] = (
    *(_first_block(t) for t in (0.08, 0.1, 0.2)),
    *(_mag(t, k) for t, k in ((0.06, 3), (0.24, 6))),
    *(_sea(t, k) for t, k in ((0.25, 2), (1.0, 4))),
    *(_taylor(n) for n in (2, 4)),
    *(_pab(s, c) for s, c in ((2, 3), (4, 6))),
    *(_faster(n) for n in (2, 3)),
    *(_cache_dit(t, False) for t in (0.2, 0.3)),
)


class _Ear(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What diffusers' hooks warn of inside, in place of their log: a hook may say so and then compute everything."""
    ear, logger = _Ear(), logging.getLogger("diffusers.hooks")
    spreads, logger.propagate = logger.propagate, False
    logger.addHandler(ear)
    try:
        yield ear.lines
    finally:
        logger.removeHandler(ear)
        logger.propagate = spreads


@contextlib.contextmanager
def left_clean(model: nn.Module) -> Iterator[None]:
    """What a peer leaves in the model's modules is gone after it: cache-dit leaves counters in the list of blocks.

    Our compiled models refuse a model with settings that it did not have when it was captured.
    """
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in set(vars(module)) - names:
                del vars(module)[name]


def register_blocks(pipe: DiffusionPipeline) -> str:
    """Registers the transformer's block with diffusers; returns what diffusers says without that, "" if it knows it."""
    block = type(pipe.transformer.blocks[0])
    try:
        TransformerBlockRegistry.get(block)
    except ValueError as error:
        TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=0))
        return f"{type(error).__name__}: {error}"
    return ""


CALIBRATION = _hook(
    "MagCache, calibration", "MagCache", lambda s: MagCacheConfig(calibrate=True, num_inference_steps=s.rows), True
)


def calibrated_ratios(run: Callable[[Peer], object]) -> tuple[float, ...]:
    """MagCache's magnitude ratios of a pipeline, from its own calibration, which prints them.

    run: a whole generation under the peer that it is given.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(CALIBRATION)
    found = [line for line in printed.getvalue().splitlines() if line.startswith("[") and not line.startswith("[Mag")]
    return tuple(float(x) for x in ast.literal_eval(found[0]))
