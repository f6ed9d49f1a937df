"""Makes an AOTInductor package without weights from a recorded graph. Attributes of the graph become inputs."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo.config
from torch import fx
from torch._inductor.package import package_aoti
from torch.export import Dim, ExportedProgram

from mccompile.backend.native import use_native
from mccompile.backend.package import Contract, SymbolicSize, TensorInput
from mccompile.backend.record import DYNAMIC, RoleRecording, ScalarArgument, TensorSpec, axis_order
from mccompile.backend.rows import use_rows_kernel
from mccompile.backend.sdpa import cudnn_attention
from mccompile.capture.part import attribute

OPTIONS = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.enable_line_tables": False,
}
LARGEST = 2**62


class CannotCompile(Exception):
    """Why a graph is not taken by AOTInductor."""


@dataclass(frozen=True, slots=True)
class Lifted:
    """A graph whose inputs are all tensors.

    inputs: for each placeholder, the place of the role's argument that feeds it. shape_only: the inputs that carry an
    int. constants: arguments that are compiled in. weights: attributes that became inputs, which come last.
    """

    module: fx.GraphModule
    inputs: tuple[int, ...]
    shape_only: frozenset[int]
    constants: tuple[tuple[int, ScalarArgument], ...]
    weights: tuple[str, ...]


def lift(recording: RoleRecording) -> Lifted:
    """Numbers that vary become sizes of empty tensors, other numbers become constants, and attributes become inputs.

    Only tensor outputs are kept. Raises CannotCompile for an attribute that is no tensor.
    """
    wanted = [i for i, is_tensor in enumerate(recording.tensors) if is_tensor]
    module = fx.GraphModule(recording.module, copy.deepcopy(recording.module.graph))
    graph = module.graph
    output = graph.output_node()
    output.args = (tuple(output.args[0][i] for i in wanted),)
    holders = graph.find_nodes(op="placeholder")
    inputs, shape_only, constants = [], set(), []
    for place, node in enumerate(holders):
        if isinstance(recording.calls[0][place], TensorSpec):
            inputs.append(place)
            continue
        number = recording.number(place)
        if number == DYNAMIC:
            inputs.append(place)
            shape_only.add(place)
            with graph.inserting_after(node):
                size = graph.call_function(torch.ops.aten.sym_size.int, (node, 0))
            node.replace_all_uses_with(size, delete_user_cb=lambda user, size=size: user is not size)
        else:
            assert not isinstance(number, str)
            constants.append((place, number))
            _replace_by_constant(graph, node, number)
    device = next((s.device for s in recording.calls[0] if isinstance(s, TensorSpec)), torch.device("cpu"))
    use_native(graph, device)
    weights = _lift_attributes(module, holders)
    graph.eliminate_dead_code(_is_impure)
    graph.lint()
    bare = fx.GraphModule(torch.nn.Module(), graph)  # without the attributes, which export would lift again
    return Lifted(bare, tuple(inputs), frozenset(shape_only), tuple(constants), weights)


def numbers_of(source: fx.GraphModule, tensors: tuple[bool, ...]) -> fx.GraphModule | None:
    """The graph of the outputs that are not tensors, with all placeholders; None if all outputs are tensors."""
    wanted = [i for i, is_tensor in enumerate(tensors) if not is_tensor]
    if not wanted:
        return None
    module = fx.GraphModule(source, copy.deepcopy(source.graph))
    output = module.graph.output_node()
    output.args = (tuple(output.args[0][i] for i in wanted),)
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.recompile()
    return module


def _is_impure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op in ("placeholder", "output") or (schema is not None and bool(schema.is_mutable))


def _replace_by_constant(graph: fx.Graph, node: fx.Node, value: ScalarArgument) -> None:
    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg(
            (user.args, user.kwargs), lambda n: value if n is node else n
        )
    graph.erase_node(node)


def _lift_attributes(module: fx.GraphModule, holders: list[fx.Node]) -> tuple[str, ...]:
    graph = module.graph
    last = next(reversed(graph.find_nodes(op="placeholder")), None)
    lifted: dict[str, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        name = str(node.target)
        if not isinstance(attribute(module, name), torch.Tensor):
            raise CannotCompile(f"its attribute `{name}` is no tensor")
        if name not in lifted:
            with graph.inserting_after(last) if last is not None else graph.inserting_before():
                last = lifted[name] = graph.placeholder(f"weight_{len(lifted)}")
        node.replace_all_uses_with(lifted[name])
        graph.erase_node(node)
    return tuple(lifted)


def export_role(recording: RoleRecording) -> tuple[ExportedProgram, Contract]:
    """The role as an exported program over tensors, and what its inputs must be. Raises CannotCompile."""
    lifted = lift(recording)
    call = recording.varied()
    examples: list[torch.Tensor] = []
    shapes: list[dict[int, object] | None] = []
    holders = lifted.module.graph.find_nodes(op="placeholder")
    of_inputs = holders[: len(lifted.inputs)]  # behind them stand the weights
    for node, place in zip(of_inputs, lifted.inputs, strict=True):
        spec = call[place]
        if not isinstance(spec, TensorSpec):
            examples.append(torch.empty(int(spec or 0), 0))
            shapes.append({0: Dim.DYNAMIC})
            continue
        axes = range(len(spec.shape)) if _is_opaque(node) else recording.axes(place)
        sizes = [max(s, 2) if i in axes else s for i, s in enumerate(spec.shape)]
        order = recording.order(place)
        examples.append(torch.empty_permuted(sizes, order, dtype=spec.dtype, device=spec.device).zero_())
        shapes.append(dict.fromkeys(axes, Dim.DYNAMIC) or None)
    weights = [attribute(recording.module, name) for name in lifted.weights]
    examples += [w.detach() for w in weights if isinstance(w, torch.Tensor)]
    shapes += [None] * len(weights)
    # With symbolic sizes a hit of this cache costs more than a miss.
    plain = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    try:
        with torch.no_grad(), plain, _own_deprecations():
            program = torch.export.export(lifted.module, tuple(examples), dynamic_shapes=tuple(shapes), strict=False)
    except Exception as error:
        raise CannotCompile(f"torch.export: {type(error).__name__}: {_first_line(error)}") from error
    use_rows_kernel(program)
    return program, _contract(recording, lifted, program, examples)


def compile_program(program: ExportedProgram, path: Path, headers: bool, by_rows: bool = False) -> None:
    """Writes the AOTInductor package of an exported program. Raises CannotCompile.

    headers: whether torch's C++ headers are compiled first, for this graph and those after it (`headers_pay`).
    by_rows: a selection decides sizes of the graph, so its attention is not cuDNN's (sdpa.py).
    """
    examples = program.example_inputs
    assert examples is not None
    options = {**OPTIONS, "aot_inductor.precompile_headers": headers}
    try:
        with torch.no_grad(), _own_deprecations(), cudnn_attention(allowed=not by_rows):
            files = torch._inductor.aot_compile(program.module(), examples[0], options=options)
    except Exception as error:
        raise CannotCompile(f"AOTInductor: {type(error).__name__}: {_first_line(error)}") from error
    package_aoti(str(path), {"model": files})


def headers_pay(graphs: int, at_once: int) -> bool:
    """Whether to compile torch's headers before so many graphs, of which `at_once` are compiled at the same time.

    The two headers (wrapper, kernels) take 4.6 s of CPU time each, one after the other, while other processes wait
    for them; a graph then takes 1.4 s less (4.5 s in place of 5.9 s; g++ 12, torch 2.13).
    """
    return graphs * 1.4 > 2 * 4.6 * max(at_once, 1)


@contextlib.contextmanager
def _own_deprecations() -> Iterator[None]:
    """Silences what torch 2.13 says of its own modules while it compiles."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)", FutureWarning)
        yield


def _is_opaque(node: fx.Node) -> bool:
    """Read by custom operators only, which take any size: no size of it is fixed in the graph."""
    targets = [u.target for u in node.users]
    return bool(targets) and all(
        isinstance(t, torch._ops.OpOverload) and t.namespace not in ("aten", "prims") for t in targets
    ) and not any(node is u.args[0] for u in node.users if u.args)


def _contract(
    recording: RoleRecording, lifted: Lifted, program: ExportedProgram, examples: list[torch.Tensor]
) -> Contract:
    holders = program.graph.find_nodes(op="placeholder")
    written = _written(lifted.module)
    free = [_is_opaque(n) for n in lifted.module.graph.find_nodes(op="placeholder")]
    specs = []
    for i, (node, example) in enumerate(zip(holders, examples, strict=True)):
        sizes: tuple[SymbolicSize, ...] = tuple(_size(s) for s in node.meta["val"].shape)
        if free[i]:
            sizes = tuple(f"any{i}_{axis}" if isinstance(s, str) else s for axis, s in enumerate(sizes))
        carried = i < len(lifted.inputs) and lifted.inputs[i] in lifted.shape_only
        specs.append(
            TensorInput(sizes, example.dtype, example.device.type, axis_order(example), i in written, carried)
        )
    count = len(lifted.inputs)
    return Contract(
        role=recording.role,
        inputs=tuple(zip(lifted.inputs, specs[:count], strict=True)),
        constants=lifted.constants,
        weights=tuple(zip(lifted.weights, specs[count:], strict=True)),
        ranges=_ranges(program),
    )


def _ranges(program: ExportedProgram) -> tuple[tuple[str, int, int], ...]:
    found = []
    for symbol, bounds in program.range_constraints.items():
        least = int(bounds.lower) if bounds.lower.is_Integer else 0
        most = int(bounds.upper) if bounds.upper.is_Integer else LARGEST
        found.append((str(symbol), least, most))
    return tuple(found)


def _size(size: int | torch.SymInt) -> SymbolicSize:
    return size if isinstance(size, int) else str(size.node.expr)


def _written(module: fx.GraphModule) -> frozenset[int]:
    """Places of the placeholders that an operator writes to, directly or through views of them."""
    place = {n: i for i, n in enumerate(module.graph.find_nodes(op="placeholder"))}
    base: dict[fx.Node, fx.Node] = {n: n for n in place}
    written = set()
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        given = schema.arguments[: len(node.args)]  # the others have their defaults, or are given by name
        for argument, value in zip(given, node.args, strict=True):
            alias = argument.alias_info
            if alias is None or not isinstance(value, fx.Node) or value not in base:
                continue
            base[node] = base[value]
            if alias.is_write:
                written.add(place[base[value]])
    return frozenset(written)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
