"""Measures what each reuse would cost: one computed run per prompt, in which every step's residual is compared with the
residuals of the steps before it.

The loss of step k under the residual of step i is mean|r_i - r_k| / mean|r_k|, times the part of the way from noise to
data that step k goes, because the sampler moves the latent by that much of the model's answer. Chunks and guidance
branches count alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from mccompile import ir
from mccompile.policy.phases import Grid
from mccompile.runtime.compiled import CompiledModel
from mccompile.runtime.trace import Event
from mccompile.studio.explore.schedule import CostTable

MOST_TOKENS = 256  # of a chunk that are looked at, evenly spaced: a table is a mean, and it need not hold whole runs


def all_kept(steps: int, chunks: ir.Chunks) -> ir.PolicyIR:
    """A policy that computes every step of a run and keeps the residual of the whole model all the same."""
    return ir.PolicyIR(
        name="measured",
        models=(),
        params=(),
        signals=(),
        phases=(ir.Phase("all", ir.Rest(), ir.StepMask((True,) * steps)),),
        regions=(ir.Region(ir.Blocks(0, -1), "residual"),),
        chunks=chunks,
        branches=ir.Branches(None, batch=False),
        cache=ir.Cache("auto", "auto", "auto", None, None, refresh_last=False),
    )


@dataclass(slots=True)
class Residuals:
    """The residuals of one run, float32 [tokens, channels] by branch, chunk and the chunk's own step."""

    seen: dict[tuple[str, int], dict[int, torch.Tensor]] = field(default_factory=dict)
    grid: Grid | None = None

    @contextlib.contextmanager
    def watching(self, model: CompiledModel) -> Iterator[None]:
        """Takes what every call of the model inside keeps."""
        seen = 0

        def after(module: CompiledModel, _: object, __: object) -> None:
            nonlocal seen
            events, seen = module.events[seen:], len(module.events)
            if events:
                self.take(module, events)

        hook = nn.Module.register_forward_hook(model, after)
        try:
            yield
        finally:
            hook.remove()

    def take(self, model: CompiledModel, events: Sequence[Event]) -> None:
        """Copies what the call that left `events` has kept."""
        latest = next(reversed(model.runner.requests.values()))
        self.grid = next(iter(latest.plans.values())).grid
        branch = events[0].branch
        store = latest.branches[branch]
        assert store.window is not None
        own = {e.chunk: e for e in events if e.sample == 0}
        for value in (t for (_, _), t in store.memory.kept.items() if t.dim() == 3):
            tokens, places = store.window.tokens, store.window.places
            video = value[0].narrow(0, value.size(1) - tokens * len(places), tokens * len(places))
            for n, (chunk, copy) in enumerate(places):
                event = own.get(chunk)
                if copy or event is None or event.action != "full" or not event.phase:
                    continue
                rows = video[n * tokens : (n + 1) * tokens]
                few = rows[:: max(1, tokens // MOST_TOKENS)].float().cpu().clone()
                self.seen.setdefault((branch, chunk), {})[event.step] = few

    def table(self, steps: int) -> CostTable:
        """The costs that this run shows."""
        assert self.grid is not None
        costs, counts = np.zeros((steps, steps)), np.zeros((steps, steps))
        way = np.abs(np.diff((*self.grid.sigmas, 0.0)))
        for by_step in self.seen.values():
            for k, own in by_step.items():
                size = float(own.abs().mean()) + 1e-12
                for i, other in by_step.items():
                    if i < k:
                        costs[i, k] += way[k] * float((other - own).abs().mean()) / size
                        counts[i, k] += 1
        return _table(costs / np.maximum(counts, 1))


def mean_table(tables: Sequence[CostTable]) -> CostTable:
    """The mean over prompts."""
    return _table(np.mean([t.costs for t in tables], axis=0))


def _table(costs: np.ndarray) -> CostTable:
    return CostTable(tuple(tuple(float(c) for c in row) for row in costs))


def table_json(table: CostTable, about: Mapping[str, object]) -> dict[str, object]:
    """A table for a file. about: what it was measured on."""
    return {"about": dict(about), "costs": [list(row) for row in table.costs]}


def read_table(data: object, about: Mapping[str, object]) -> CostTable | None:
    """What `table_json` made; None where it is damaged, or was measured on something else."""
    match data:
        case {"about": dict(found), "costs": [[*_], *_] as rows} if found == dict(about):
            if all(len(row) == len(rows) and all(isinstance(c, float) for c in row) for row in rows):
                return CostTable(tuple(tuple(row) for row in rows))
    return None
