"""Exports a model from two recorded calls. Sizes that differ between them are dynamic; the rest is constant."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch._dynamo.config
from torch import fx, nn
from torch.export import Dim
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils import _pytree as pytree

from mccompile.capture.arguments import GivenList, as_one
from mccompile.capture.branches import (
    BranchesTaken,
    BranchMet,
    UnknownCondition,
    branches_taken,
    conditions,
    fixed_branches,
)
from mccompile.capture.by_sample import LoopMet, loops_once
from mccompile.capture.equal_sizes import one_size, with_one_size
from mccompile.capture.errors import ExportError, ProbeError, first_line
from mccompile.capture.extremes import compares, symbolic_extremes, takes_extremes
from mccompile.capture.guards import AT_EACH_SIZE
from mccompile.capture.inline import inline_contexts
from mccompile.capture.normalise import drop_checks, drop_plain_casts
from mccompile.capture.number_lists import symbolic_lists
from mccompile.capture.plain_data import followed_data
from mccompile.capture.repeat import WeightsMissed, repeats
from mccompile.capture.roots import symbolic_roots
from mccompile.capture.spaced import symbolic_spaces
from mccompile.capture.unfold import NotUnfolded, unfold
from mccompile.capture.watched import forwards
from mccompile.capture.whole_numbers import symbolic_ints


@dataclass(frozen=True, slots=True)
class Exported:
    """A model's graph with its two calls as flat lists, one entry per placeholder."""

    module: fx.GraphModule
    probe: tuple[object, ...]
    second: tuple[object, ...]
    dynamic: tuple[bool, ...]  # tensors, and ints that differ
    guards: tuple[str, ...]  # what export demands of the sizes of a call (guards.py)
    source: str  # the tensor with most dynamic axes, the first in forward's signature of these: the latent
    copies: Mapping[fx.Node, fx.Node]  # the nodes of blocks that repeat others, and those of the others
    told: tuple[str, ...]  # what a call must fulfil besides: the branches on values that forward takes at both calls
    looped: bool  # whether forward goes through its samples by a loop of its own


def without_defaults(model: nn.Module, call: Mapping[str, object]) -> dict[str, object]:
    """The call in the order of forward's signature, without arguments that have the default None.

    A forward that can return a tuple or an output object is captured with the tuple, whatever the call asks for.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [k for k in call if k not in parameters]
    if unknown and not takes_any:
        raise ProbeError(
            f"{type(model).__name__}.forward",
            f"it has no argument {', '.join(map(repr, unknown))}",
            f"its arguments are {', '.join(parameters)}",
        )
    call = {**call, "return_dict": False} if "return_dict" in parameters else call
    known = {k: call[k] for k in parameters if k in call and not (call[k] is None and parameters[k].default is None)}
    return known | {k: call[k] for k in unknown}


def _dynamic_axes(place: str, one: object, two: object) -> dict[int, object] | object | None:
    """The entry of torch.export's dynamic_shapes for one leaf."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dim() != two.dim() or one.dtype != two.dtype:
            raise ProbeError(
                place,
                f"{list(one.shape)} {one.dtype} in the first call, {list(two.shape)} {two.dtype} in the second",
                "record two calls of the same pipeline that differ in frames, height or width only",
            )
        axes = {i: Dim.DYNAMIC for i, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b}
        return axes or None
    if type(one) is not type(two):
        raise ProbeError(
            place, f"{type(one).__name__} against {type(two).__name__}", "give both calls the same kinds of values"
        )
    if isinstance(one, int) and not isinstance(one, bool):
        return Dim.DYNAMIC if one != two else None
    if isinstance(one, GivenList):
        return Dim.DYNAMIC
    if one != two:
        raise ProbeError(
            place, f"{one!r} against {two!r}", "a constant must be the same in both calls; capture once per value"
        )
    return None


def export_model(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object], each: bool = False
) -> Exported:
    """Exports `model` (non-strict, no grad) with dynamic sizes found by comparing two calls.

    probe, second: keyword arguments of `model.forward` at two sizes; every derived count should be at least 2.
    each: whether every block is traced by itself; otherwise a block that repeats another gets a copy of its nodes.
    The graph has no checks and no contexts that change nothing.
    Raises ProbeError (MC0402) if the calls do not fit together, and ExportError (MC0401) if torch.export fails.
    """
    found = _traced(model, probe, second, each)
    if not any(map(compares, found.guards)) or not takes_extremes(model):
        return found
    try:
        with symbolic_extremes(model):
            other = _traced(model, probe, second, each)
    except ExportError:
        return found
    return other if sum(map(compares, other.guards)) < sum(map(compares, found.guards)) else found


def _traced(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object], each: bool, bare: bool = True,
    taken: BranchesTaken | None = None, looped: bool = False,
) -> Exported:  # fmt: skip
    """As `export_model`, with a branch of the recorded calls where forward takes the larger of two sizes.

    bare: whether blocks that are bound to repeat another are without their weights meanwhile. taken: the branches on
    values, where there are some. looped: whether forward goes through its samples by a loop.
    """
    pair = paired(model, probe, second)
    shapes = pytree.tree_unflatten(list(pair.shapes), pair.spec)
    repeated: Mapping[str, str] = {}
    try:
        with contextlib.ExitStack() as stack:
            repeated = {} if each else stack.enter_context(repeats(model, bare))
            equal = () if each else one_size(model, pair.paths, pair.probe, pair.second)
            stack.enter_context(with_one_size(model, pair.call, equal))
            stack.enter_context(loops_once(model, pair.call, pair.samples, ready=looped))
            stack.enter_context(fixed_branches(taken))
            stack.enter_context(symbolic_ints(model))
            module, guards, rewritten = _export(model, pair.call, shapes)
    except ExportError as error:
        if isinstance(error.__cause__, BranchMet):
            found = branches_taken(model, pair.call, without_defaults(model, second))
            return _traced(model, probe, second, each, bare, found, looped)
        if isinstance(error.__cause__, LoopMet):
            return _traced(model, probe, second, each, bare, taken, looped=True)
        if bare and isinstance(error.__cause__, WeightsMissed | AttributeError):
            return _traced(model, probe, second, each, False, taken, looped)
        if not repeated:
            raise
        return _traced(model, probe, second, True, taken=taken, looped=looped)
    told = (*_told(model, module, pair), *((AT_EACH_SIZE,) if looped or rewritten else ()))
    drop_checks(module)
    inline_contexts(module)
    drop_checks(module)
    drop_plain_casts(module)
    try:
        copies = unfold(module, model, repeated)
    except NotUnfolded:
        return _traced(model, probe, second, True, taken=taken, looped=looped)
    placeholders = [n.name for n in module.graph.find_nodes(op="placeholder")]
    return Exported(
        module, pair.probe, pair.second, pair.dynamic, guards, placeholders[pair.source], copies, told, looped
    )


def _told(model: nn.Module, module: fx.GraphModule, pair: Pair) -> tuple[str, ...]:
    try:
        return conditions(module, pair.paths)
    except UnknownCondition as error:
        name = f"{type(model).__name__}.forward"
        why = "it branches on a value that is no pure function of its arguments"
        raise ExportError(name, why, "let it branch on sizes, or on what its arguments say") from error


@dataclass(frozen=True, slots=True)
class Pair:
    """Two calls of a model as flat lists of the same arguments. spec: of the keyword arguments, by name.

    paths: where each leaf stands, for people. shapes: for each leaf its dynamic axes, as torch.export wants them.
    """

    call: dict[str, object]  # the first
    spec: pytree.TreeSpec
    paths: tuple[str, ...]
    probe: tuple[object, ...]
    second: tuple[object, ...]
    shapes: tuple[object, ...]

    @property
    def dynamic(self) -> tuple[bool, ...]:
        """Which leaves vary: tensors, ints that differ, and lists."""
        leaves = zip(self.probe, self.shapes, strict=True)
        return tuple(isinstance(x, torch.Tensor) or s is not None for x, s in leaves)

    @property
    def samples(self) -> tuple[int, ...]:
        """The places of the tensors with several samples along their first axis in the first call, one in the other."""
        leaves = enumerate(zip(self.probe, self.second, self.shapes, strict=True))
        return tuple(i for i, (a, b, axes) in leaves if isinstance(axes, dict) and 0 in axes and _is_one(b, a))

    @property
    def source(self) -> int:
        """The place of the latent: the tensor with most dynamic axes, the first of these."""
        axes = [len(s) if isinstance(s, dict) else 0 for s in self.shapes]
        return axes.index(max(axes))


def paired(
    model: nn.Module, probe: Mapping[str, object], second: Mapping[str, object], lists: Sequence[str] = ()
) -> Pair:
    """The two calls side by side. lists: the arguments that are one value each, a list of numbers.

    Raises ProbeError (MC0402) where the calls do not fit together, ExportError (MC0401).
    """
    name = type(model).__name__
    if model.training:
        raise ExportError(name, "the model is in training mode", "call model.eval() first")
    first_call, second_call = (as_one(without_defaults(model, call), lists) for call in (probe, second))
    flat, spec = pytree.tree_flatten(first_call)
    other, other_spec = pytree.tree_flatten(second_call)
    if spec != other_spec:
        raise ProbeError(
            f"{name}.forward",
            f"the first call passes {', '.join(first_call)}; the second {', '.join(second_call)}, or other containers",
            "pass the same arguments in both calls",
        )
    paths = [pytree.keystr(path)[1:-1] for path, _ in pytree.tree_flatten_with_path(first_call)[0]]
    places = [f"{name}.forward, argument {path}" for path in paths]
    shapes = [_dynamic_axes(p, a, b) for p, a, b in zip(places, flat, other, strict=True)]
    if not any(isinstance(s, dict) for s in shapes):
        raise ProbeError(
            f"{name}.forward",
            "no tensor changes its size between the two calls",
            "record the second call with other frames, height and width",
        )
    return Pair(first_call, spec, tuple(paths), tuple(flat), tuple(other), tuple(shapes))


def _is_one(one: object, several: object) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(several, torch.Tensor):
        return False
    return several.size(0) > one.size(0) == 1


@contextlib.contextmanager
def _named(model: nn.Module, call: Mapping[str, object]) -> Iterator[None]:
    """Inside, a forward that takes `**kwargs` has the arguments of the call by name, as torch.export wants them."""
    signature = inspect.signature(model.forward)
    parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [name for name in call if name not in signature.parameters]
    if not more:
        yield
        return
    own = model.forward

    def forward(**arguments: object) -> object:
        return own(**arguments)

    by_name = (inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in more)
    forward.__signature__ = signature.replace(parameters=[*parameters, *by_name])  # type: ignore[attr-defined]
    with forwards({model: forward}):
        yield


def _export(
    model: nn.Module, call: dict[str, object], shapes: object
) -> tuple[fx.GraphModule, tuple[str, ...], bool]:
    """The graph, its guards, and whether an operator stands in it by several others (spaced.py)."""
    name = type(model).__name__
    # With symbolic sizes a hit of this cache costs more than a miss.
    plain = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    try:
        quiet = contextlib.redirect_stderr(io.StringIO())  # torch prints the graph so far
        lists, data, named = symbolic_lists(), followed_data(), _named(model, call)
        with torch.no_grad(), plain, quiet, lists, data, symbolic_roots(), symbolic_spaces() as spaces, named:
            program = torch.export.export(model, (), call, dynamic_shapes=shapes, strict=False)
            module = program.module()
    except Exception as error:
        raise ExportError(
            f"{name}.forward",
            f"torch.export: {type(error).__name__}: {first_line(error)}",
            "the forward must be traceable without control flow on tensor values; sizes that the model fixes "
            "(position tables) must be equal in both calls",
        ) from error
    if not isinstance(module, fx.GraphModule):
        raise ExportError(f"{name}.forward", "torch.export returned no graph module", "use torch 2.11 to 2.13")
    return _LazyGraphModule.from_graphmodule(module), tuple(program._guards_code), bool(spaces)
