"""A graph that was compiled ahead of time: what it expects, how it is loaded, and the checks that it needs.

An AOTInductor package does not check its arguments. With a wrong size it reads foreign memory. Every distinct signature
of a call is therefore checked once against what torch.export proved, and remembered.
"""

from __future__ import annotations

import ast
import operator
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mccompile.backend.package_errors import UnfitCall
from mccompile.backend.record import ScalarArgument
from mccompile.backend.role import Role, Value

ALIGNMENT = 16  # bytes
_Loader = Any  # torch._C._aoti.AOTIModelPackageLoader
SymbolicSize = int | str  # a number, or an expression of size symbols such as "s0" or "4*s1"


@dataclass(frozen=True, slots=True)
class TensorInput:
    """What a package expects of one tensor. order: its axes from the largest stride to the smallest.

    shape_only: made from an int argument n as an empty [n, 0] tensor: packages take no numbers.
    """

    sizes: tuple[SymbolicSize, ...]
    dtype: torch.dtype
    device: str
    order: tuple[int, ...]
    written: bool
    shape_only: bool = False


@dataclass(frozen=True, slots=True)
class Contract:
    """Inputs of a package, by place among the role's arguments, and the least and largest size of each symbol.

    constants: arguments whose values are compiled in. weights: attributes of the graph that follow the inputs.
    """

    role: Role
    inputs: tuple[tuple[int, TensorInput], ...]
    constants: tuple[tuple[int, ScalarArgument], ...]
    weights: tuple[tuple[str, TensorInput], ...]
    ranges: tuple[tuple[str, int, int], ...]


def check_contract(contract: Contract) -> None:
    """Raises ValueError for a contract that no compile makes."""
    specs = [spec for _, spec in (*contract.inputs, *contract.weights)]
    for spec in specs:
        if sorted(spec.order) != list(range(len(spec.sizes))):
            raise ValueError(f"axes {spec.order} of {len(spec.sizes)} sizes")
        for size in spec.sizes:
            if isinstance(size, int) and size < 0:
                raise ValueError(f"a size of {size}")
            if isinstance(size, str):
                evaluate_size(size, {})
    places = [place for place, _ in (*contract.inputs, *contract.constants)]
    if sorted(places) != list(range(len(places))):
        raise ValueError(f"arguments at the places {sorted(places)!r:.100}")


class PackageFolder:
    """A temporary folder that goes when it is dropped, at the latest with the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="mccompile-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Package:
    """A loaded package as a callable of the role's arguments, returning its tensor outputs."""

    __slots__ = ("_contract", "_known", "_loaders", "_numbers", "_on_gpu", "_path", "_tensors", "_weights")

    def __init__(self, path: Path, contract: Contract, weights: Sequence[torch.Tensor]) -> None:
        """Loads the package. weights: values of `contract.weights`. Raises UnfitCall for weights that do not fit."""
        self._contract, self._path = contract, path
        self._weights = list(weights)
        for value, (name, spec) in zip(weights, contract.weights, strict=True):
            check_tensor(contract.role, f"weight `{name}`", value, spec, {})
        self._loaders: dict[torch.device, _Loader] = {}
        self._known: dict[tuple[object, ...], tuple[_Loader, tuple[Callable[[Value], torch.Tensor] | None, ...]]] = {}
        self._tensors = [i for i, s in contract.inputs if not s.shape_only]
        self._numbers = [i for i, s in contract.inputs if s.shape_only] + [i for i, _ in contract.constants]
        self._on_gpu = any(s.device != "cpu" for _, s in contract.inputs)
        if weights or not self._on_gpu:
            self._loader(weights[0].device if weights else torch.device("cpu"))

    def _loader(self, device: torch.device) -> _Loader:
        """The package on one device: kernels of a GPU are loaded on it, and not on the current one."""
        if device not in self._loaders:
            index = -1 if device.index is None else device.index
            made = torch._C._aoti.AOTIModelPackageLoader(str(self._path), "model", True, 1, index)
            self._loaders[device] = made
        return self._loaders[device]

    def __call__(self, *arguments: Value) -> list[torch.Tensor]:
        """Raises UnfitCall (MC0801) where the arguments are not what the package was compiled for."""
        key = self._signature(arguments)
        known = self._known.get(key)
        if known is None:
            changes = self._admit(arguments)
            known = self._known[key] = self._loader(self._device(arguments)), changes
        loader, changes = known
        inputs: list[object] = []
        for (place, _), change in zip(self._contract.inputs, changes, strict=True):
            value = arguments[place]
            inputs.append(value if change is None else change(value))
        if not self._on_gpu:
            return loader.boxed_run(inputs + self._weights)
        aligned = [_aligned(value) for value in inputs]
        written = [spec.written for _, spec in self._contract.inputs]
        back = [(v, a) for v, a, w in zip(inputs, aligned, written, strict=True) if w and a is not v]
        results = loader.boxed_run(aligned + self._weights)
        for buffer, copy in back:  # rows of float8, one byte wider than the head, of one sample among several
            buffer.copy_(copy)  # type: ignore[attr-defined]
        return results

    def _device(self, arguments: Sequence[Value]) -> torch.device:
        """Where a call runs. Raises UnfitCall where its tensors and the weights are on several GPUs."""
        given = (arguments[i] for i in self._tensors)
        tensors = [t for t in (*given, *self._weights) if isinstance(t, torch.Tensor)]
        found = sorted({t.device for t in tensors if t.device.type != "cpu"}, key=str)
        if len(found) > 1:
            raise UnfitCall(self._contract.role, "the call", "all tensors on one device", f"{found[0]} and {found[1]}")
        return found[0] if found else torch.device("cpu")

    def _signature(self, arguments: Sequence[Value]) -> tuple[object, ...]:
        """All that `_admit` looks at, flat: this runs at every call (14 us for 36 tensors)."""
        tensors: list[torch.Tensor] = [arguments[i] for i in self._tensors]
        try:
            shapes = [t.shape for t in tensors]
            strides = [t.stride() for t in tensors]
            types = [t.dtype for t in tensors]
            devices = [t.device for t in tensors]
        except AttributeError:  # a number where a tensor is due
            self._admit(arguments)
            raise
        numbers = [arguments[i] for i in self._numbers]
        return (*shapes, *strides, *types, *devices, *map(type, numbers), *numbers)

    def _admit(self, arguments: Sequence[Value]) -> tuple[Callable[[Value], torch.Tensor] | None, ...]:
        """Checks one signature; for each input what must be done to it on the way, None for nothing."""
        contract = self._contract
        for place, constant in contract.constants:
            if arguments[place] != constant or isinstance(arguments[place], torch.Tensor):
                raise UnfitCall(contract.role, f"argument {place}", f"{constant!r}", _describe(arguments[place]))
        symbols: dict[str, int] = {}
        changes: list[Callable[[Value], torch.Tensor] | None] = []
        carried = {i: _carry(v) if s.shape_only else v for i, s in contract.inputs if (v := arguments[i]) is not None}
        for simple in (True, False):  # symbols on their own are bound before expressions of them are checked
            for place, spec in contract.inputs:
                bind_sizes(contract.role, f"argument {place}", carried.get(place), spec, symbols, simple)
        for symbol, least, most in contract.ranges:
            if symbol in symbols and not least <= symbols[symbol] <= most:
                raise UnfitCall(contract.role, f"size {symbol}", f"{least} to {most}", str(symbols[symbol]))
        for place, spec in contract.inputs:
            value = carried[place]
            assert isinstance(value, torch.Tensor)
            check_tensor(contract.role, f"argument {place}", value, spec, symbols)
            if spec.shape_only:
                changes.append(_carry)
            elif value.permute(spec.order).is_contiguous():
                changes.append(None)
            elif spec.written:
                want = f"axes {spec.order} dense, since it is written in place"
                raise UnfitCall(contract.role, f"argument {place}", want, f"strides {value.stride()}")
            else:
                changes.append(_laid_out(spec.order))
        return tuple(changes)


def _aligned(value: object) -> object:
    """`value`, or a copy of it where vector loads of GPU kernels may not begin."""
    assert isinstance(value, torch.Tensor)
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def _carry(value: Value) -> torch.Tensor:
    return torch.empty((int(value), 0))


def _laid_out(order: tuple[int, ...]) -> Callable[[Value], torch.Tensor]:
    back = tuple(order.index(i) for i in range(len(order)))

    def change(value: Value) -> torch.Tensor:
        assert isinstance(value, torch.Tensor)
        return value.permute(order).contiguous().permute(back)

    return change


def bind_sizes(
    role: Role, place: str, value: object, spec: TensorInput, symbols: dict[str, int], simple: bool
) -> None:
    """Gives size symbols their values (simple), or checks the expressions of them. Raises UnfitCall."""
    if not isinstance(value, torch.Tensor) or value.dim() != len(spec.sizes):
        raise UnfitCall(role, place, f"a tensor of shape {list(spec.sizes)}", _describe(value))
    for axis, size in enumerate(spec.sizes):
        if isinstance(size, int) or size.isidentifier() != simple:
            continue
        have = value.size(axis)
        want = symbols.setdefault(size, have) if simple else evaluate_size(size, symbols)
        if want is not None and want != have:
            raise UnfitCall(role, place, f"size {want} ({size}) on axis {axis}", _describe(value))


def check_tensor(role: Role, place: str, value: object, spec: TensorInput, symbols: Mapping[str, int]) -> None:
    """Raises UnfitCall where dtype, device, rank or a fixed size of `value` is not as expected."""
    want = [s if isinstance(s, int) else symbols.get(s, s) for s in spec.sizes]
    expected = f"{str(spec.dtype).removeprefix('torch.')} {want} on {spec.device}"
    if not isinstance(value, torch.Tensor):
        raise UnfitCall(role, place, expected, _describe(value))
    fixed = value.dim() == len(spec.sizes) and all(
        not isinstance(s, int) or s == have for s, have in zip(spec.sizes, value.shape, strict=True)
    )
    if not fixed or value.dtype != spec.dtype or value.device.type != spec.device:
        raise UnfitCall(role, place, expected, _describe(value))


LONGEST_SIZE, LARGEST_EXPONENT = 200, 16  # characters of an expression; exponents are small in sizes
_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
}


def evaluate_size(expression: str, symbols: Mapping[str, int]) -> int | None:
    """The value of an integer expression of symbols; None where it holds more than arithmetic.

    Raises ValueError for text that is no expression.
    """

    def value(node: ast.expr) -> int | None:
        match node:
            case ast.Constant(int() as number):
                return number
            case ast.Name(name):
                return symbols.get(name)
            case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
                one, two = value(left), value(right)
                if one is None or two is None or (isinstance(op, ast.Pow) and not 0 <= two <= LARGEST_EXPONENT):
                    return None
                if isinstance(op, ast.FloorDiv | ast.Mod) and two == 0:
                    return None
                return _OPERATORS[type(op)](one, two)
            case ast.UnaryOp(ast.USub(), operand):
                inner = value(operand)
                return None if inner is None else -inner
        return None

    if len(expression) > LONGEST_SIZE:
        raise ValueError(f"a size of {len(expression)} characters")
    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"`{expression}` is no size") from error


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device.type}"
    return repr(value)
