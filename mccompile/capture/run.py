"""Runs the parts of a captured model in plain order: the reference for the runtime, and what verify uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import as_one, as_recorded
from mccompile.capture.errors import CallError
from mccompile.capture.part import attribute
from mccompile.capture.types import Assembled, BlockSite, CapturedModel

CAPTURE_THESE = "capture again with calls of this kind (`call` of mccompile.compile takes a pipeline's arguments)"


@dataclass(frozen=True, slots=True)
class FullRun:
    """All values between the parts of one forward, by name, and the buffers of every block."""

    values: dict[str, object]
    buffers: tuple[tuple[torch.Tensor, ...], ...]
    outputs: tuple[object, ...]


def flat_inputs(captured: Assembled, call: Mapping[str, object], one_by_one: bool = False) -> tuple[object, ...]:
    """The captured inputs among the keyword arguments of a call, in order.

    one_by_one: a call of more samples than the graph has is taken apart where the model allows it.
    Raises CallError (MC0405) where the call passes other arguments, or another constant than at capture.
    """
    place = f"{captured.model_class}.forward"
    if isinstance(captured, CapturedModel):
        call = as_one(as_recorded(call, captured.written), captured.lists)
    count = captured.in_spec.num_leaves
    _, recorded = pytree.tree_unflatten(list(range(count)), captured.in_spec)
    given = {k: v for k, v in call.items() if v is not None or k in recorded}
    given |= {"return_dict": False} if "return_dict" in recorded else {}  # the caller wraps what the graph returns
    if captured.samples:
        lists = {k for k, v in recorded.items() if isinstance(v, list | tuple) and len(v) == 1}
        given = {k: one_for_all(v) if k in lists else v for k, v in given.items()}
    odd = sorted(set(given) ^ set(recorded))
    if odd:
        raise CallError(
            place,
            f"captured with the arguments {', '.join(recorded)}; {', '.join(odd)} differ",
            "call it as it was recorded, or capture again",
        )
    leaves, spec = pytree.tree_flatten({k: given[k] for k in recorded})
    if spec != pytree.tree_flatten(recorded)[1]:
        raise CallError(place, _other_container(given, recorded), CAPTURE_THESE)
    constants = dict(captured.constants)
    names = [n.name for n in captured.module.graph.find_nodes(op="placeholder")]
    flat = []
    for name, leaf in zip(names, leaves, strict=True):
        if name not in constants:
            flat.append(leaf)
        elif type(leaf) is not type(constants[name]) or leaf != constants[name]:
            raise CallError(
                place, f"`{name}` is {leaf!r}; captured with {constants[name]!r}", "capture once per constant"
            )
    if isinstance(captured, CapturedModel):
        if not one_by_one or not captured.each:
            _check_samples(captured, flat)
        _check_dtypes(captured, flat)
    return tuple(flat)


def _check_samples(captured: CapturedModel, flat: Sequence[object]) -> None:
    """Refuses another number of samples than the graph holds as a constant."""
    for name, size in captured.fixed:
        given = flat[captured.inputs.index(name)]
        if isinstance(given, torch.Tensor) and given.size(0) != size:
            raise CallError(
                f"{captured.model_class}.forward",
                f"`{name}` has {given.size(0)} samples, but the model was captured for {size}; it could not be "
                f"captured for any number of samples: {captured.unbatched}",
                f"call it with {size}, or {CAPTURE_THESE}",
            )


def _other_container(given: Mapping[str, object], recorded: Mapping[str, object]) -> str:
    """Which argument of a call is another container than the recorded one, and how."""
    counts = {k: (pytree.tree_structure(given[k]), pytree.tree_structure(v)) for k, v in recorded.items()}
    name, (now, then) = next((k, pair) for k, pair in counts.items() if pair[0] != pair[1])
    if now.num_leaves != then.num_leaves:
        return f"`{name}` holds {now.num_leaves} values; captured with {then.num_leaves}"
    return f"`{name}` is another container than at capture"


def _check_dtypes(captured: CapturedModel, flat: Sequence[object]) -> None:
    """Refuses truth values in place of numbers, or numbers in place of truth values.

    Casts of the forward that changed nothing at capture are not in the graph, and a mask means something else without.
    """
    given = dict(zip(captured.inputs, flat, strict=True))
    for name, dtype in captured.dtypes:
        tensor = given[name]
        if isinstance(tensor, torch.Tensor) and (tensor.dtype == torch.bool) != (dtype == str(torch.bool)):
            raise CallError(
                f"{captured.model_class}.forward",
                f"`{name}` is of {tensor.dtype}, and the model was captured with {dtype}",
                f"give it as {dtype}, or capture again with calls of this kind",
            )


def one_for_all(value: object) -> object:
    """A list of equal numbers, one a sample, as a list of one; anything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    return value[:1] if all(not isinstance(v, torch.Tensor) and v == value[0] for v in value) else value


def block_weights(captured: Assembled, site: BlockSite) -> tuple[torch.Tensor, ...]:
    """The tensors of a block's weight placeholders."""
    return tuple(attribute(captured.module, name) for name in site.weights)


def run_full(captured: Assembled, inputs: Sequence[object]) -> FullRun:
    """Prelude, every block in full, postlude."""
    names = (*captured.entry, *(p.name for p in captured.shared))
    values: dict[str, object] = dict(zip(names, captured.prelude(*inputs), strict=True))
    buffers = []
    for site in captured.blocks:
        kind = captured.kinds[site.kind]
        operands = [values[n] for n in (*site.streams_in, *site.shared)]
        own = kind.allocate(*operands)
        streams = kind.full(*operands, *own, *block_weights(captured, site))
        values.update(zip(site.streams_out, streams, strict=True))
        buffers.append(tuple(own))
    shared = [values[p.name] for p in captured.shared]
    outputs = captured.postlude(*(values[n] for n in captured.exit), *shared, *inputs)
    return FullRun(values, tuple(buffers), outputs)
