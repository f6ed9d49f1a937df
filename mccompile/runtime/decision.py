"""Feeds the decision and observe graphs, and reads the mask back: the one host read of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mccompile.lowering.decide import CLOCKS, DecideSpec
from mccompile.lowering.observe import HOST, ObserveSpec
from mccompile.lowering.sources import Located, to_cells
from mccompile.policy.bind import BoundPolicy
from mccompile.policy.evaluate import clock_value, table_value
from mccompile.policy.planner import Plan
from mccompile.runtime.actions import Action
from mccompile.runtime.clock import Moment
from mccompile.runtime.layout import Layout
from mccompile.runtime.shared import Value
from mccompile.runtime.store import BranchStore, Decision

Call = Callable[..., tuple[Value, ...]]


def parameters(names: Sequence[str], bound: BoundPolicy, device: torch.device) -> torch.Tensor:
    """The vector of parameter values, in the order of `names`."""
    return torch.tensor([float(bound.values[n]) for n in names], dtype=torch.float32, device=device)


def host_rows(
    spec: DecideSpec, moment: Moment, actions: Sequence[Sequence[Action]], store: BranchStore, plan: Plan
) -> np.ndarray:
    """`host` [B, K, G] float32: what the clock and the plan know of each chunk of each sample. Changes nothing."""
    host = np.zeros((len(actions), len(spec.host), len(moment.chunks)), np.float32)
    row = {name: i for i, name in enumerate(spec.host)}
    for b, of_sample in enumerate(actions):
        for g, (time, action) in enumerate(zip(moment.chunks, of_sample, strict=True)):
            at = host[b, :, g]
            at[row["active"]] = runs(action)
            at[row["forced"]] = action.kind == "compute"
            at[row["reused"]] = action.kind == "reuse"
            at[row["phase"]] = action.phase
            at[row["first"]] = time.chunk == 0
            sees = {t.chunk for t, a in zip(moment.chunks[:g], of_sample, strict=False) if runs(a)}  # in this very call
            at[row["tail"]] = (b, time.chunk - 1) in store.seen or time.chunk - 1 in sees
            if action.account is not None:
                at[row["known"]], at[row["account"]] = 1.0, action.account
            if time.state != "active":
                continue
            cell = plan.cells[time.step]
            for clock in CLOCKS:
                at[row[clock]] = clock_value(clock, time.step, moment.grid)
            for i, table in enumerate(spec.tables):
                at[row[f"table:{i}"]] = table_value(table, time.step, moment.grid.steps)
            for i, change in enumerate(spec.changes):
                at[row[f"change:{i}"]] = cell.values[plan.changes.index(change)]
    return host


def runs(action: Action) -> bool:
    """Whether a decision is made about the chunk: it is not skipped and is no copy of another."""
    return action.kind not in ("skip", "follow")


def _on_its_way(mask: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The mask on the host, and what to wait for before it is read: copies from a GPU end behind the host's back."""
    if mask.device.type != "cuda":
        return mask.cpu(), None
    copied = torch.cuda.Event()
    target = torch.empty(mask.shape, dtype=mask.dtype, pin_memory=True).copy_(mask, non_blocking=True)
    copied.record(torch.cuda.current_stream(mask.device))
    return target, copied


class Decide:
    """The decision graph with its states in the store."""

    def __init__(self, spec: DecideSpec, call: Call) -> None:
        self.spec = spec
        self.measures = any(n.startswith(("before:", "tail:")) for n in spec.inputs)  # so it must see every step
        self._call = call

    def run(
        self, host: np.ndarray, params: torch.Tensor, sources: Mapping[str, torch.Tensor], store: BranchStore,
        layout: Layout, moment: Moment,
    ) -> np.ndarray:
        """Mask [B, G, F, P] (True = compute); updates the states of the call's chunks in `store`."""  # fmt: skip
        return self.finish(self.start(host, params, sources, store, layout, moment), store)

    def start(
        self, host: np.ndarray, params: torch.Tensor, sources: Mapping[str, torch.Tensor], store: BranchStore,
        layout: Layout, moment: Moment,
    ) -> Decision:  # fmt: skip
        """Puts the graph on the device's queue, and the copy of its mask to the host; changes nothing kept."""
        device = params.device
        first = moment.chunks[0].chunk
        span = slice(first, first + layout.chunks)
        arguments: list[torch.Tensor] = []
        for name in self.spec.inputs:
            kind, _, key = name.partition(":")
            match kind:
                case "host":
                    arguments.append(torch.from_numpy(host).to(device, non_blocking=True))
                case "params":
                    arguments.append(params)
                case "now":
                    arguments.append(sources[key])
                case _:
                    full = self._state(name, sources, store, layout, moment, device)
                    arguments.append(full[:, first : first + layout.chunks + 1] if kind == "tail" else full[:, span])
        results = dict(zip(self.spec.outputs, self._call(*arguments), strict=True))
        mask = results.pop("mask")
        assert isinstance(mask, torch.Tensor)
        return Decision(host, first, results, *_on_its_way(mask))

    def finish(self, decision: Decision, store: BranchStore) -> np.ndarray:
        """The mask of a decision, once it is there; its states become the store's, and the chunks it saw are noted."""
        active = decision.host[:, self.spec.host.index("active")]
        store.seen |= {(int(b), decision.first + int(g)) for b, g in np.argwhere(active > 0)}
        for name, value in decision.states.items():
            keep_state(store, name, decision.first, value)
        if decision.copied is not None:
            decision.copied.synchronize()
        return decision.mask.numpy()

    def states(
        self, sources: Mapping[str, torch.Tensor], store: BranchStore, layout: Layout, moment: Moment,
        device: torch.device,
    ) -> None:  # fmt: skip
        """All states of the graph in `store`, as its first run makes them."""
        for name in self.spec.inputs:
            if name.partition(":")[0] not in ("host", "params", "now"):
                self._state(name, sources, store, layout, moment, device)

    def _state(
        self, name: str, sources: Mapping[str, torch.Tensor], store: BranchStore, layout: Layout, moment: Moment,
        device: torch.device,
    ) -> torch.Tensor:  # fmt: skip
        if name not in store.states:
            kind, _, key = name.partition(":")
            b, _, f, p = layout.cells
            shape: tuple[int, ...] = (b, moment.total, f, p)
            if kind in ("before", "tail"):
                source = key.split(":")[0]
                where = next(s for s in self.spec.sources if s.source == source)
                cells = to_cells(sources[source], where, torch.empty(layout.cells, device="meta"))
                shape = (b, moment.total, *cells.shape[2:])
                shape = (b, moment.total + 1, *cells.shape[3:]) if kind == "tail" else shape
            fill = 1.0 if kind == "late" else 0.0
            store.states[name] = torch.full(shape, fill, dtype=torch.float32, device=device)
        return store.states[name]


class Observe:
    """The graph of late signals with its states in the store."""

    def __init__(self, spec: ObserveSpec, call: Call, where: Located) -> None:
        self.spec = spec
        self._call = call
        self._where = where

    def run(
        self, want: np.ndarray, params: torch.Tensor, output: torch.Tensor, store: BranchStore, layout: Layout,
        moment: Moment,
    ) -> None:
        """Refreshes the late signals of the chunks wanted, bool [B, G]; the others keep theirs."""  # fmt: skip
        first = moment.chunks[0].chunk
        span = slice(first, first + layout.chunks)
        device = output.device
        self.states(output, store, layout, moment)
        host = np.zeros((layout.batch, len(HOST), layout.chunks), np.float32)
        host[:, 0] = want
        for g, time in enumerate(moment.chunks):
            for sample in range(layout.batch):
                if want[sample, g]:  # in order: a predecessor observed in this very step counts
                    store.observed[sample, time.chunk] = True
                host[sample, 1, g] = time.chunk == 0
                host[sample, 2, g] = time.chunk > 0 and bool(store.observed[sample, time.chunk - 1])
        tail = store.states["observed"][:, first : first + layout.chunks + 1]
        late = [store.states[f"late:{n}"][:, span] for n in self.spec.signals]
        made = self._call(torch.from_numpy(host).to(device), params, output, tail, *late)
        for name, value in zip(("observed", *(f"late:{n}" for n in self.spec.signals)), made, strict=True):
            keep_state(store, name, first, value)

    def states(self, output: torch.Tensor, store: BranchStore, layout: Layout, moment: Moment) -> None:
        """All states of the graph in `store`, made where they are missing."""
        b, _, f, p = layout.cells
        for name in self.spec.signals:
            if f"late:{name}" not in store.states:
                store.states[f"late:{name}"] = torch.ones(b, moment.total, f, p, device=output.device)
        if "observed" not in store.states:
            store.states["observed"] = torch.zeros(b, moment.total + 1, p, output.size(-1), device=output.device)


def keep_state(store: BranchStore, name: str, first: int, value: Value) -> None:
    """Takes over what a graph made of a state from the chunk `first` on; the graphs' results are their own tensors."""
    assert isinstance(value, torch.Tensor)
    state = store.states[name]
    if state.shape == value.shape:
        store.states[name] = value
    else:
        state[:, first : first + value.size(1)] = value
