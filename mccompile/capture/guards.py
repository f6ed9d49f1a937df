"""What a graph demands of a call: the guards of torch.export on its sizes, as text that a small reader evaluates.

A forward may branch on a size (`if frames > 4`). The graph has the branch of the recorded calls. Export's guard says at
which sizes that is the right one. A branch on values has a guard too (branches.py): operators of aten on arguments.
A guard that cannot be read counts as broken, so nothing is assumed of it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import torch

_BINARY: Mapping[type[ast.operator], Callable[..., int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_COMPARED: Mapping[type[ast.cmpop], Callable[..., bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_ARGUMENTS = "L"  # export's name for the arguments of a call
AT_EACH_SIZE = "at each size the model is asked"
"""A guard that no call fulfils: export wrote the forward in another way, and two sizes alone show that it is right."""


class UnreadGuard(Exception):
    """A guard with a construct that this reader does not know, or of an argument that a call lacks."""


def broken(guards: Sequence[str], call: Mapping[str, object]) -> tuple[str, ...]:
    """The guards that a call does not fulfil, those that cannot be read among them. call: its keyword arguments."""
    return tuple(guard for guard in guards if not _holds(guard, call))


def _holds(guard: str, call: Mapping[str, object]) -> bool:
    try:
        return bool(_value(_parsed(guard), call))
    except (UnreadGuard, ZeroDivisionError):
        return False


@lru_cache(maxsize=4096)
def _parsed(guard: str) -> ast.expr:
    try:
        return ast.parse(guard, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadGuard(guard) from error


def _value(node: ast.expr, call: Mapping[str, object]) -> object:
    match node:
        case ast.Constant(int() as value):
            return value
        case ast.BoolOp(ast.And(), values):
            return all(_value(v, call) for v in values)
        case ast.BoolOp(ast.Or(), values):
            return any(_value(v, call) for v in values)
        case ast.UnaryOp(ast.Not(), operand):
            return not _value(operand, call)
        case ast.UnaryOp(ast.USub(), operand):
            return -_number(operand, call)
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return _BINARY[type(op)](_number(left, call), _number(right, call))
        case ast.Compare(left, ops, comparators) if all(type(op) in _COMPARED for op in ops):
            sides = [_number(side, call) for side in (left, *comparators)]
            return all(_COMPARED[type(op)](a, b) for op, (a, b) in zip(ops, pairwise(sides), strict=True))
        case ast.Call(ast.Name("max" | "min" as name), [_, *_] as args, []):
            return (max if name == "max" else min)(_number(a, call) for a in args)
        case ast.Call(ast.Attribute(ast.Attribute(ast.Name("aten"), operator_name), overload), args, []):
            function = getattr(getattr(torch.ops.aten, operator_name), overload)
            return function(*(_operand(a, call) for a in args))
        case ast.Subscript() | ast.Call():
            return _argument(node, call)
        case _:
            raise UnreadGuard(ast.dump(node))


def _operand(node: ast.expr, call: Mapping[str, object]) -> object:
    """An operand of an operator on tensors."""
    match node:
        case ast.Constant(bool() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(items):
            return [_operand(item, call) for item in items]
        case _:
            return _value(node, call)


def of_values(guard: str) -> bool:
    """Whether a guard is about what the arguments of a call hold, not about their sizes."""
    return "aten." in guard


def arguments_of(guard: str) -> frozenset[str]:
    """The names of the arguments that a guard is about."""
    found = (node for node in ast.walk(_parsed(guard)) if isinstance(node, ast.Subscript))
    named = (node.slice for node in found if isinstance(node.value, ast.Name) and node.value.id == _ARGUMENTS)
    return frozenset(key.value for key in named if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _number(node: ast.expr, call: Mapping[str, object]) -> int:
    value = _value(node, call)
    if not isinstance(value, int):
        raise UnreadGuard(ast.dump(node))
    return value


def _argument(node: ast.expr, call: Mapping[str, object]) -> object:
    """An argument of the call, a part of one, its sizes, or one of them."""
    match node:
        case ast.Name(name) if name == _ARGUMENTS:
            return call
        case ast.Call(ast.Attribute(of, "size"), [], []):
            tensor = _argument(of, call)
            if isinstance(tensor, torch.Tensor):
                return tuple(tensor.shape)
        case ast.Subscript(of, ast.Constant(int() | str() as key)):
            match _argument(of, call), key:
                case (list() | tuple()) as found, int() if key < len(found):
                    return found[key]
                case Mapping() as found, str() if key in found:
                    return found[key]
    raise UnreadGuard(ast.dump(node))


def sizes_of_constants(call: Mapping[str, object], other: Mapping[str, object]) -> tuple[str, ...]:
    """Guards for the sizes that two calls share: the graph may hold them as constants."""
    found = []
    for name, value in call.items():
        also = other.get(name)
        if isinstance(value, torch.Tensor) and isinstance(also, torch.Tensor):
            pairs = enumerate(zip(value.shape, also.shape, strict=True))
            found += [f"{_ARGUMENTS}[{name!r}].size()[{axis}] == {a}" for axis, (a, b) in pairs if a == b]
    return tuple(found)
