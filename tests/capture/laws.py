"""Oracles for the laws of capture: rows of a partial block, and attention with kept keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from mccompile.capture import BlockSite, CapturedModel, FullRun, block_weights, split_prelude

Rows = Mapping[str, torch.Tensor]


def gathered_rows(captured: CapturedModel, inputs: Sequence[object], index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows of the shared values by name, and positions by row key ("video" is the index)."""
    assert captured.gather is not None
    sources = split_prelude(captured, [p.name for p in captured.sources])(*inputs)
    found = captured.gather(index, *sources)
    return {"video": index} | dict(zip((*captured.gathered, *captured.row_keys), found, strict=True))


def select(captured: CapturedModel, name: str, value: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The selected rows of a stream."""
    port = next(p for p in captured.streams if p.name == name)
    return value if port.token_axis is None else value.index_select(port.token_axis, rows[port.rows])


def run_partial(
    captured: CapturedModel, site: BlockSite, streams: Sequence[torch.Tensor], rows: Rows, buffers: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """A block's partial form on streams that hold all rows; writes into `buffers`."""
    kind = captured.kinds[site.kind]
    assert kind.partial is not None
    chosen = [select(captured, n, x, rows) for n, x in zip(site.streams_in, streams, strict=True)]
    shared = [rows[n] for n in site.shared]
    vectors = [rows[k] for k in kind.row_keys]
    return tuple(kind.partial(*chosen, *shared, *vectors, *buffers, *block_weights(captured, site)))


def streams_of(run: FullRun, site: BlockSite) -> list[torch.Tensor]:
    """What enters a block in a full run."""
    found = [run.values[n] for n in site.streams_in]
    assert all(isinstance(x, torch.Tensor) for x in found)
    return found  # type: ignore[return-value]


class KeptAttention(fx.Interpreter):
    """Runs a full block but lets every buffered attention read kept keys and values outside the selection."""

    def __init__(self, captured: CapturedModel, site: BlockSite, rows: Rows, kept: Sequence[torch.Tensor]) -> None:
        kind = captured.kinds[site.kind]
        super().__init__(kind.full)
        self.kept = {spec.name: (spec, buffer) for spec, buffer in zip(kind.buffers, kept, strict=True)}
        self.rows = rows

    def run_node(self, n: fx.Node) -> object:
        if "attention" not in n.meta:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        blended = []
        for name, fresh in zip(n.meta["attention"]["buffers"], args[1:3], strict=True):
            spec, buffer = self.kept[name]
            chosen = torch.zeros(fresh.shape[spec.token_axis], dtype=torch.bool)
            chosen[self.rows[spec.rows]] = True
            shape = [-1 if axis == spec.token_axis else 1 for axis in range(fresh.dim())]
            blended.append(torch.where(chosen.view(shape), fresh, buffer))
        return n.target(args[0], *blended, *args[3:], **kwargs)  # type: ignore[operator]


def run_kept(
    captured: CapturedModel,
    site: BlockSite,
    streams: Sequence[torch.Tensor],
    run: FullRun,
    rows: Rows,
    kept: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """All rows of a block whose unselected keys and values are the kept ones: what partial's rows must equal."""
    kind = captured.kinds[site.kind]
    operands = [*streams, *(run.values[n] for n in site.shared)]
    spare = kind.allocate(*operands)
    return tuple(KeptAttention(captured, site, rows, kept).run(*operands, *spare, *block_weights(captured, site)))


def selections(count: int) -> list[torch.Tensor]:
    """One token, two in descending order, a random third, all in random order."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(count, generator=generator)
    return [order[:1], torch.tensor([count - 1, 0]), order[: count // 3], order]
