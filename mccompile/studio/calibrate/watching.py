"""Watches a run in which every call is computed: how far signals, output and residuals move between its steps."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from mccompile import ir
from mccompile.capture.part import Input
from mccompile.capture.types import TokenGrid
from mccompile.lowering.expressions import change
from mccompile.lowering.locate import timestep_of
from mccompile.lowering.slots import SourceBefore
from mccompile.lowering.sources import Located, to_cells
from mccompile.lowering.types import LoweredModel
from mccompile.policy.groups import groups
from mccompile.runtime.compiled import LOG, CompiledModel
from mccompile.runtime.store import BranchStore, Window
from mccompile.runtime.trace import Event
from mccompile.studio.calibrate.asked import slug
from mccompile.studio.calibrate.errors import NotMeasurable
from mccompile.studio.calibrate.samples import Samples

MOST_PLACES = 1024  # of a chunk's tokens that are looked at, evenly spaced: sizes and distances are means over them
_CHUNK = ir.Granularity.CHUNK
_REMEDY = "calibrate a model whose video latents are [batch, channel, frame, height, width]"


@dataclass(frozen=True, slots=True)
class Seen:
    """One chunk at one of its steps, float32 on the host; cells are [1, 1, F, P, C].

    residuals: of each group of regions, those of its regions, [tokens, C].
    """

    sources: tuple[torch.Tensor, ...]
    latent: torch.Tensor
    output: torch.Tensor
    residuals: tuple[tuple[torch.Tensor, ...], ...]
    timestep: float


@dataclass(slots=True)
class WatchedRun:
    """Rows of `Samples`, gathered while a run is made.

    ages: how many earlier steps each step is compared with. sensitive: whether the model is asked once more at every
    step, with the latents of now and the timestep of the step before.
    """

    signals: Sequence[ir.Change]
    ages: int
    sensitive: bool
    _branches: dict[str, int] = field(default_factory=dict)
    _seen: dict[tuple[str, int], dict[int, Seen]] = field(default_factory=dict)
    _calls: dict[str, Mapping[str, object]] = field(default_factory=dict)
    _pairs: list[list[float]] = field(default_factory=list)
    _steps: list[list[float]] = field(default_factory=list)
    _regions: int = 0

    @contextlib.contextmanager
    def watching(self, model: CompiledModel) -> Iterator[None]:
        """Takes every call of the model inside."""
        count = 0

        def after(module: CompiledModel, _: object, call: dict[str, object], made: object) -> None:
            nonlocal count
            events, count = module.events[count:], len(module.events)
            if events:
                self._take(module, events, call, made)

        hook = nn.Module.register_forward_hook(model, after, with_kwargs=True)
        LOG.addFilter(_expected)
        try:
            yield
        finally:
            LOG.removeFilter(_expected)
            hook.remove()

    def samples(self) -> Samples:
        """What was seen."""
        residuals = [f"residual {i}" for i in range(self._regions)]
        signals = [f"signal {slug(s)}" for s in self.signals]
        pairs = ("branch", "chunk", "step", "age", "output", "latent", *signals, *residuals)
        steps = ("branch", "chunk", "step", "to latent", "to timestep", *(f"ratio {i}" for i in range(self._regions)))
        return Samples(tuple(self._branches), pairs, _table(self._pairs, pairs), steps, _table(self._steps, steps))

    def _take(self, model: CompiledModel, events: Sequence[Event], call: Mapping[str, object], made: object) -> None:
        branch = events[0].branch
        store = next(reversed(model.runner.requests.values())).branches[branch]
        assert store.window is not None
        number = self._branches.setdefault(branch, len(self._branches))
        output, latent = _first(made), _tensor(call, model)
        again = self._asked_again(model, branch, call)
        self._calls[branch] = dict(call)
        own = {e.chunk: e for e in events if e.sample == 0 and e.action == "full" and e.phase}
        for n, (chunk, copy) in enumerate(store.window.places):
            if copy or chunk not in own:
                continue
            cut = _Cut(model, store.window, n)
            earlier = self._seen.setdefault((branch, chunk), {})
            values = cut.cells(latent), cut.cells(output)
            residuals = _residuals(model.runner.lowered, store, n)
            now = Seen(self._sources(store, chunk), *values, residuals, cut.timestep(call))
            self._regions = len(now.residuals)
            middle = None if again is None else cut.cells(again)
            self._compare(number, own[chunk], now, earlier, middle)
            earlier[own[chunk].step] = now
            for step in [s for s in earlier if s <= own[chunk].step - self.ages]:
                del earlier[step]

    def _sources(self, store: BranchStore, chunk: int) -> tuple[torch.Tensor, ...]:
        """The sources of the signals, as the decision graph has just kept them."""
        states = next(iter(store.courses.values())).states.tensors
        found = (states[SourceBefore(s.of.name, "step")][:1, chunk : chunk + 1] for s in self.signals)
        return tuple(_few(t, 3).float().cpu().clone() for t in found)

    def _asked_again(self, model: CompiledModel, branch: str, call: Mapping[str, object]) -> torch.Tensor | None:
        """The model's output for the latents of now at the timestep of the last call; None where there is none."""
        before, name = self._calls.get(branch), timestep_of(model.runner.lowered.captured)
        if not self.sensitive or before is None or _tensor(before, model).shape != _tensor(call, model).shape:
            return None
        with torch.no_grad():
            return _first(model.model(**{**call, name: before[name]}))

    def _compare(
        self, branch: int, event: Event, now: Seen, earlier: Mapping[int, Seen], middle: torch.Tensor | None
    ) -> None:
        for step, then in earlier.items():
            moved = [_moved("rel_l1", now.output, then.output), _moved("rel_l1", now.latent, then.latent)]
            both = zip(self.signals, now.sources, then.sources, strict=True)
            moved += [_moved(signal.distance, a, b) for signal, a, b in both]
            moved += [_mean(_relative, a, b) for a, b in zip(now.residuals, then.residuals, strict=True)]
            self._pairs.append([branch, event.chunk, event.step, event.step - step, *moved])
        last = earlier.get(event.step - 1)
        if last is None:
            return
        ratios = [_mean(_ratio, a, b) for a, b in zip(now.residuals, last.residuals, strict=True)]
        self._steps.append([branch, event.chunk, event.step, *_sensitivities(now, last, middle), *ratios])


def _expected(record: logging.LogRecord) -> bool:
    """Drops the warning that the policy reused nothing: a calibration computes every call."""
    return not record.getMessage().startswith("policy calibrate reused nothing")


class _Cut:
    """One chunk out of the tensors of a call: place `n` of its window."""

    def __init__(self, model: CompiledModel, window: Window, n: int) -> None:
        captured = model.runner.lowered.captured
        grid = captured.grid
        if grid is None or grid.axes != (2, 3, 4):
            raise NotMeasurable(captured.model_class, "its latents are no video", _REMEDY)
        self._where = Located("latent", Input(grid.source), "latent", 2, grid.patch)
        self._patch, self._chunks, self._n = grid.patch, len(window.places), n
        self._timestep = timestep_of(captured)

    def cells(self, value: torch.Tensor) -> torch.Tensor:
        """Latents or an output [B, C, frames, height, width] as cells of the chunk."""
        pt, ph, pw = self._patch
        frames = value.size(2) // self._chunks
        own = value[:1, :, self._n * frames : (self._n + 1) * frames]
        f, p = frames // pt, (own.size(3) // ph) * (own.size(4) // pw)
        cells = to_cells(own, self._where, torch.empty((1, 1, f, p), device="meta"))
        return _few(cells, 3).float().cpu().clone()

    def timestep(self, call: Mapping[str, object]) -> float:
        """The chunk's timestep in a call: its frames', or the one of all."""
        value = call[self._timestep]
        assert isinstance(value, torch.Tensor)
        flat = value.reshape(value.size(0), -1)[0] if value.dim() > 1 else value.reshape(-1)[:1]
        return float(flat[self._n * flat.numel() // self._chunks])


def _residuals(lowered: LoweredModel, store: BranchStore, n: int) -> tuple[tuple[torch.Tensor, ...], ...]:
    """What the regions of each group keep of one chunk, [tokens, C]; the streams of video tokens only."""
    assert store.window is not None
    tokens, chunks = store.window.tokens, len(store.window.places)
    found: dict[int, torch.Tensor] = {}
    for (region, _), value in sorted(store.memory.kept.items()):
        if value.dim() == 3 and value.size(1) >= tokens * chunks:
            video = value[0].narrow(0, value.size(1) - tokens * chunks, tokens * chunks)
            found.setdefault(region, _few(video[n * tokens : (n + 1) * tokens], 0).float().cpu().clone())
    own = ((v for r, v in found.items() if lowered.regions[r].group == group) for group in groups(lowered.policy))
    return tuple(kept for kept in map(tuple, own) if kept)


def _mean(
    measure: Callable[[torch.Tensor, torch.Tensor], float], now: Sequence[torch.Tensor], then: Sequence[torch.Tensor]
) -> float:
    """A measure of two steps, as a mean over the regions of a group."""
    return float(np.mean([measure(a, b) for a, b in zip(now, then, strict=True)]))


def _few(value: torch.Tensor, axis: int) -> torch.Tensor:
    """At most so many places along an axis, evenly spaced."""
    stride = max(1, value.size(axis) // MOST_PLACES)
    return value if stride == 1 else value.index_select(axis, torch.arange(0, value.size(axis), stride))


def _first(made: object) -> torch.Tensor:
    """The tensor that a transformer gives: first of a tuple, or of an output class."""
    if isinstance(made, torch.Tensor):
        return made
    first = made[0]  # type: ignore[index]  # a tuple, or diffusers' output classes, which are read alike
    assert isinstance(first, torch.Tensor)
    return first


def _tensor(call: Mapping[str, object], model: CompiledModel) -> torch.Tensor:
    """The latents of a call."""
    grid = model.runner.lowered.captured.grid
    name = grid.source if isinstance(grid, TokenGrid) else ""
    value = call.get(name)
    if not isinstance(value, torch.Tensor):
        raise NotMeasurable(model.runner.lowered.captured.model_class, "its calls name no video latents", _REMEDY)
    return value


def _moved(distance: ir.Distance, now: torch.Tensor, then: torch.Tensor) -> float:
    return float(change(distance, now, then, _CHUNK).flatten()[0])


def _relative(now: torch.Tensor, then: torch.Tensor) -> float:
    """The error of reusing an earlier residual: mean|r_i - r_k| / mean|r_k| (SmoothCache)."""
    return float((now - then).abs().mean() / (now.abs().mean() + 1e-12))


def _ratio(now: torch.Tensor, then: torch.Tensor) -> float:
    """The ratio of the residual's size to that at the step before, a mean over tokens (MagCache)."""
    return float((now.norm(dim=-1) / (then.norm(dim=-1) + 1e-12)).mean())


def _sensitivities(now: Seen, then: Seen, middle: torch.Tensor | None) -> tuple[float, float]:
    """How strongly the output answers to the latents, and to the timestep in 1/1000 (SenCache, arXiv 2602.24208).

    middle: the output for the latents of now at the timestep of then. NaN where it was not asked for.
    """
    if middle is None:
        return float("nan"), float("nan")
    by_latent = _moved("l2", middle, then.output) / (_moved("l2", now.latent, then.latent) + 1e-12)
    return by_latent, _moved("l2", now.output, middle) / (abs(now.timestep - then.timestep) + 1e-12)


def _table(rows: Sequence[Sequence[float]], names: Sequence[str]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, len(names))
