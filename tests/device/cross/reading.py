"""Reads what compiling left behind: the calls of a C++ wrapper, and the registers of compiled kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_BODY = "AOTInductorModel::run_impl("
_KERNEL = re.compile(r"\bcall_(\w+?)\s*\(")  # a launch: every kernel has a function of its own that launches it
_EXTERN = re.compile(r"\baoti_torch_(?:cuda|cpu)_+(\w+?)\s*\(")
_MEMORY = re.compile(r"\baoti_torch_(copy_|clone)\s*\(")  # not `clone_preserve_strides`: of misaligned inputs alone
_CUSTOM = re.compile(r"\b(?:aoti_torch_proxy_executor_call_function|aoti_torch_call_dispatcher)\s*\(")
_FUNCTION = re.compile(r"^ Function (\S+):\s*$")
_USED = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True, slots=True)
class Calls:
    """What one call of a package does.

    kernels: launches of compiled kernels, by name. extern: torch's operators. custom: operators that go through Python
    or the dispatcher. copies: copies of whole tensors, of a buffer that is written in place above all.
    """

    kernels: Mapping[str, int] = field(default_factory=dict)
    extern: Mapping[str, int] = field(default_factory=dict)
    custom: int = 0
    copies: int = 0

    @property
    def launches(self) -> int:
        """Launches at least: an operator of torch may launch more than one."""
        return sum(self.kernels.values()) + sum(self.extern.values()) + self.custom


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes of a multiprocessor. spilled: bytes per thread that registers did not hold."""

    kernel: str
    registers: int
    spilled: int


def read_wrapper(text: str) -> Calls:
    """The calls of the wrapper that AOTInductor wrote. Raises ValueError for a text that is none."""
    if _BODY not in text:
        raise ValueError("no wrapper of AOTInductor: it has no run_impl")
    body = text[text.index(_BODY) :]
    return Calls(
        kernels=dict(Counter(_KERNEL.findall(body))),
        extern=dict(Counter(_EXTERN.findall(body))),
        custom=len(_CUSTOM.findall(body)),
        copies=len(_MEMORY.findall(body)),
    )


def read_resources(text: str) -> list[Resources]:
    """The kernels in the output of `cuobjdump -res-usage`. Raises ValueError where it names none."""
    found: list[Resources] = []
    kernel = ""
    for line in text.splitlines():
        named = _FUNCTION.match(line)
        if named is not None:
            kernel = named[1]
        used = {name: int(count) for name, count in _USED.findall(line)}
        if kernel and "REG" in used:
            found.append(Resources(kernel, used["REG"], used["STACK"] + used["LOCAL"]))
            kernel = ""
    if not found:
        raise ValueError(f"no kernel in {text!r:.200}")
    return found
