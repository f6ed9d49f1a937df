"""Runs an assembled model against the model and against itself: the numbers behind what the dataflow proved.

identity  prelude, blocks and postlude give the outputs of the eager model, within the tolerance of their dtype
rows      the partial form of a block gives the rows that its full form gives, and writes the same rows into
          the buffers, from buffers filled by the full form and from scrambled rows at the selection
A `Refusal` names the block whose rows differ; a wrong identity is an IdentityError, for then nothing holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import renewed
from mccompile.capture.errors import IdentityError, first_line
from mccompile.capture.grid import embedding_of, find_grid, latent_range
from mccompile.capture.run import FullRun, block_weights, flat_inputs, run_full
from mccompile.capture.split import split_prelude
from mccompile.capture.types import AnyGrid, Assembled, BlockSite, CapturedModel, Refusal

Model = TypeVar("Model", bound=Assembled)
TIMESTEPS = ("timestep", "timesteps", "t", "time")  # what models call the input that tells them the step

# Largest difference allowed between a row of `partial` and of `full`, relative to the largest entry: the same
# products summed in another order. An index off by one is wrong by the order of one.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


def check_identity(
    captured: Assembled, model: nn.Module, call: dict[str, object], inputs: Sequence[object], run: FullRun
) -> None:
    """Raises IdentityError (MC0404) unless a run of the parts gives the model's own outputs.

    call: the eager call's keyword arguments; inputs: the same as captured inputs; run: of the parts on them.
    """
    with torch.no_grad():
        expected = [x for x in pytree.tree_flatten(model(**renewed(call)))[0] if isinstance(x, torch.Tensor)]
    given = [x for x in run.outputs if isinstance(x, torch.Tensor)]
    for one, two in zip_longest(expected, given):
        if one is None or two is None or not close(one, two):
            raise IdentityError(
                f"{captured.model_class}.forward at inputs {sizes_of(inputs)}",
                "the exported graph gives other outputs than the eager model",
                "look for constants that the forward computes from sizes with numpy or Python",
            )


def sizes_of(inputs: Sequence[object]) -> str:
    """The shapes of the tensors among inputs, for a message."""
    return ", ".join(str(list(x.shape)) for x in inputs if isinstance(x, torch.Tensor))


def close(expected: torch.Tensor, given: torch.Tensor) -> bool:
    """Equal up to the order of sums; tensors of different shapes or dtypes are not."""
    if expected.shape != given.shape or expected.dtype != given.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, given)
    scale = max(float(expected.abs().max()), 1e-6) if expected.numel() else 1.0
    error = float((expected - given).abs().max()) if expected.numel() else 0.0
    return error <= TOLERANCE[expected.dtype] * scale


def check_rows(captured: Model, inputs: Sequence[object], run: FullRun, index: torch.Tensor) -> Model:
    """The model with the partial form taken from every kind whose rows are wrong at its first site.

    index: selected tokens; run: of the parts on `inputs`.
    """
    if captured.gather is None:
        return captured
    try:
        rows = gathered_rows(captured, inputs, index)
    except (RuntimeError, IndexError) as error:
        whole = tuple(replace(k, partial=None) for k in captured.kinds)
        refusal = Refusal("gather", f"it fails on the selected rows: {first_line(error)}")
        return replace(captured, gather=None, kinds=whole, refusals=(*captured.refusals, refusal))
    kinds, refusals = list(captured.kinds), list(captured.refusals)
    for site in captured.blocks:
        first = next(s for s in captured.blocks if s.kind == site.kind) is site
        if first and kinds[site.kind].partial is not None:
            reason = wrong_rows(captured, site, run, rows)
            if reason is not None:
                kinds[site.kind] = replace(kinds[site.kind], partial=None)
                refusals.append(Refusal(site.path, reason))
    return replace(captured, kinds=tuple(kinds), refusals=tuple(refusals))


def gathered_rows(captured: Assembled, inputs: Sequence[object], index: torch.Tensor) -> dict[str, torch.Tensor]:
    """The rows of the shared values by name, and positions by row key ("video" is the index of selected tokens)."""
    assert captured.gather is not None
    sources = split_prelude(captured, [p.name for p in captured.sources])
    with torch.no_grad():
        found = captured.gather(index, *sources(*inputs))
    return {"video": index} | dict(zip((*captured.gathered, *captured.row_keys), found, strict=True))


def stream_rows(captured: Assembled, name: str, value: object, rows: Mapping[str, torch.Tensor]) -> object:
    """The selected rows of a stream's value; `rows` as the gather part returned them."""
    port = next(p for p in captured.streams if p.name == name)
    if port.token_axis is None or not isinstance(value, torch.Tensor):
        return value
    return value.index_select(port.token_axis, rows[port.rows])


def wrong_rows(
    captured: Assembled, site: BlockSite, run: FullRun, rows: dict[str, torch.Tensor]
) -> str | None:
    """What is wrong with the partial form at one block; None if its rows and buffers are those of the full form."""
    try:
        pairs = row_pairs(captured, site, run, rows)
    except (RuntimeError, IndexError) as error:
        return f"its row form fails: {first_line(error)}"
    wrong = (what for what, expected, given in pairs if not close(expected, given))
    return next((f"{what} differ from those of the full form" for what in wrong), None)


def row_pairs(
    captured: Assembled, site: BlockSite, run: FullRun, rows: dict[str, torch.Tensor]
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """(what, of the full form, of the partial form) at one block: the rows of each stream, and each buffer.

    run: of the parts on some inputs. rows: as the gather part gives them at the selected positions.
    """
    kind = captured.kinds[site.kind]
    kept = [b.clone() for b in run.buffers[site.index]]
    for spec, buffer in zip(kind.buffers, kept, strict=True):
        buffer.index_fill_(spec.token_axis, rows[spec.rows], float("nan"))  # what partial must overwrite
    outputs = run_rows(captured, site, run.values, rows, kept)
    pairs = []
    for name, given in zip(site.streams_out, outputs, strict=True):
        expected = stream_rows(captured, name, run.values[name], rows)
        assert isinstance(expected, torch.Tensor)
        pairs.append((f"the rows of `{name}`", expected, given))
    buffers = zip(kind.buffers, kept, run.buffers[site.index], strict=True)
    return [*pairs, *((f"the rows of the buffer {spec.name}", full, buffer) for spec, buffer, full in buffers)]


def run_rows(
    captured: Assembled, site: BlockSite, values: Mapping[str, object], rows: Mapping[str, torch.Tensor],
    kept: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """What the partial form of a block, which has one, gives for selected rows. It writes into `kept`.

    values: the streams that enter, with all their rows. rows: as the gather part gives them.
    """
    kind = captured.kinds[site.kind]
    assert kind.partial is not None
    streams = [stream_rows(captured, n, values[n], rows) for n in site.streams_in]
    shared = [rows[n] for n in site.shared]
    vectors = [rows[k] for k in kind.row_keys]
    with torch.no_grad():
        return kind.partial(*streams, *shared, *vectors, *kept, *block_weights(captured, site))


def random_selection(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """About a third of the tokens, at least one, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[: max(1, count // 3)].to(device)


def prove(
    assembled: Assembled, model: nn.Module, calls: Sequence[dict[str, object]], source: str, unbatched: str = ""
) -> CapturedModel:
    """Finds the grid from the first two calls, and checks identity and rows at all (keyword arguments).

    source: name of the latent among the inputs. unbatched: why the number of samples may not vary.
    Returns the model without the partial forms that failed. Raises IdentityError (MC0404).
    """
    flat = [flat_inputs(assembled, call) for call in calls]
    proved, moving = _proved(assembled, model, list(zip(calls, flat, strict=True)), source)
    grid = find_grid(proved, flat[0], flat[1], source)
    if isinstance(grid, Refusal):
        proved = replace(proved, refusals=(*proved.refusals, grid))
    return _captured(proved, None if isinstance(grid, Refusal) else grid, unbatched, flat[:2], moving)


def _run(captured: Assembled, inputs: Sequence[object]) -> FullRun:
    """All parts at one size. Raises IdentityError (MC0404) where they do not run."""
    try:
        with torch.no_grad():
            return run_full(captured, inputs)
    except (RuntimeError, IndexError) as error:
        raise IdentityError(
            f"{captured.model_class}.forward at inputs {sizes_of(inputs)}",
            f"the exported graph does not run at this size: {first_line(error)}",
            "a size became a constant on the way; forward must compute it from the shapes of its arguments",
        ) from error


def _proved(
    captured: Assembled, model: nn.Module, calls: Sequence[tuple[dict[str, object], Sequence[object]]], source: str
) -> tuple[Assembled, tuple[str, ...]]:
    """Without the partial forms that give wrong rows at one of the calls; and the inputs that move at all of them."""
    moving = set(captured.inputs)
    for seed, (call, inputs) in enumerate(calls):
        run = _run(captured, inputs)
        check_identity(captured, model, call, inputs, run)
        moving &= _moving(captured, inputs, run.outputs)
        if captured.gather is None:
            continue
        embedding = embedding_of(captured, inputs, source)
        start, stop = latent_range(embedding)
        index = random_selection(stop - start, seed, embedding.latent.device)
        captured = check_rows(captured, inputs, run, index)
    if captured.gather is not None and all(k.partial is None for k in captured.kinds):
        captured = replace(captured, gather=None)
    return captured, tuple(name for name in captured.inputs if name in moving)


def _moving(captured: Assembled, inputs: Sequence[object], outputs: Sequence[object]) -> set[str]:
    """The inputs that a step changes, by one call: each becomes a stream and is like an output, or equals the timestep.
    """  # fmt: skip
    shapes = [x.shape for x in outputs if isinstance(x, torch.Tensor)]
    streams = frozenset().union(*(port.depends for port in captured.streams if port.name in captured.entry))
    given = {name: x for name, x in zip(captured.inputs, inputs, strict=True) if isinstance(x, torch.Tensor)}
    times = [given[name] for name in TIMESTEPS if name in given]
    again = (name for name, x in given.items() if any(_tells_again(x, t) for t in times))
    return {name for name, x in given.items() if name in streams and x.shape in shapes} | set(again)


def _tells_again(value: torch.Tensor, timestep: torch.Tensor) -> bool:
    """Whether a value is the timestep: the very same, or one number a sample of those that tokens are given."""
    if value.shape == timestep.shape:
        return torch.equal(value, timestep)
    a_sample = value.dim() == 1 and value.is_floating_point() and timestep.dim() > 1
    return a_sample and bool(value.all()) and bool(torch.isin(value, timestep.to(value.dtype)).all())


def _captured(
    proved: Assembled, grid: AnyGrid | None, unbatched: str, flat: Sequence[Sequence[object]], moving: tuple[str, ...]
) -> CapturedModel:
    """A proved model with what only runs tell."""
    sizes = zip(proved.inputs, *flat, strict=True)
    tensors = ((n, a, b) for n, a, b in sizes if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor))
    fixed = tuple((n, a.size(0)) for n, a, b in tensors if a.dim() and a.size(0) == b.size(0))
    given = zip(proved.inputs, flat[0], strict=True)
    return CapturedModel(
        module=proved.module,
        model_class=proved.model_class,
        inputs=proved.inputs,
        constants=proved.constants,
        in_spec=proved.in_spec,
        out_spec=proved.out_spec,
        prelude=proved.prelude,
        gather=proved.gather,
        postlude=proved.postlude,
        entry=proved.entry,
        exit=proved.exit,
        shared=proved.shared,
        sources=proved.sources,
        gathered=proved.gathered,
        streams=proved.streams,
        row_keys=proved.row_keys,
        kinds=proved.kinds,
        blocks=proved.blocks,
        refusals=proved.refusals,
        samples=proved.samples,
        opaque=proved.opaque,
        grid=grid,
        unbatched=unbatched,
        fixed=fixed if unbatched else (),
        dtypes=tuple((n, str(x.dtype)) for n, x in given if isinstance(x, torch.Tensor)),
        moving=moving,
    )
