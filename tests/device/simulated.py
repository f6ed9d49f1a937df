"""A simulated CUDA device for machines that have none.

Under `with SimulatedDevice() as device:` a tensor of another device than its operator's raises, as on a GPU. Everything
that makes the host wait for the device is noted with the line of Python that did it, and every operator that would
launch a kernel is counted. The count is an upper bound: one kernel for each operator that is not a view.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device.tensor import CPU, CUDA, OnDevice, aten, attention, current, memory_of, switch_off, switch_on

_FREE = {  # they launch no kernel
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten._unsafe_view.default, aten.detach.default, aten.lift_fresh.default,
    aten.sym_size.int, aten._reshape_alias.default, aten.set_.source_Tensor, aten.empty_permuted.default,
}  # fmt: skip
_READS = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.is_nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.bincount.default,
}  # fmt: skip
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_BYTES = (torch.bool, torch.uint8)


@dataclass(frozen=True)
class Wait:
    """The host waited. kind: read (a value), download or upload (a blocking copy), pageable (a copy that is not
    blocking, out of memory that is not pinned), event, or stream.
    """

    kind: str
    what: str
    place: str


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        current().wait("event", "synchronize")

    def query(self) -> bool:
        return True


class _Stream:
    device = CUDA

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self) -> None:
        current().wait("stream", "synchronize")

    def wait_stream(self, other: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()


_PICKS = {"pick_keys": 3, "picked_attention": 4}  # how many of their first operands are on the device


class SimulatedDevice(TorchDispatchMode):
    """The device that tensors of class OnDevice are on."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.launched: Counter[str] = Counter()
        self.attended: list[tuple[int, bool]] = []  # rows of each attention over prefixes; whether cuDNN may take it
        self._pinned: list[torch.Tensor] = []  # held, so that no other memory takes the place of theirs

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return self.launched.total()

    def wait(self, kind: str, what: str) -> None:
        """Notes that the host waits, and where."""
        self.waits.append(Wait(kind, what, _place()))

    # ---- switching on and off
    def __enter__(self) -> Self:
        switch_on(self)
        replaced = {
            "_lazy_init": lambda: None, "Event": _Event, "Stream": _Stream, "current_stream": lambda _=None: _Stream(),
            "synchronize": lambda _=None: self.wait("stream", "cuda.synchronize"),
            "stream": lambda _: contextlib.nullcontext(), "is_current_stream_capturing": lambda: False,
        }  # fmt: skip
        self._stock = {name: getattr(torch.cuda, name) for name in replaced}
        for name, value in replaced.items():
            setattr(torch.cuda, name, value)
        self._tensor, self._as_tensor = torch.tensor, torch.as_tensor
        torch.tensor, torch.as_tensor = self._made, self._made_of  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *why: Any) -> None:
        super().__exit__(*why)
        for name, value in self._stock.items():
            setattr(torch.cuda, name, value)
        torch.tensor, torch.as_tensor = self._tensor, self._as_tensor
        switch_off()

    def _made(self, data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
        made = self._tensor(data, **more)
        return made.to(CUDA) if device is not None and torch.device(device).type == "cuda" else made

    def _made_of(self, data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        return self._made(data, device=device, dtype=dtype)

    # ---- operators
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operator(func, args, kwargs or {})

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operator on the memory of its tensors, and notes what it would cost."""
        tensors = list(_tensors((args, kwargs)))
        named = kwargs.get("device")
        to_device = named is not None and torch.device(named).type == "cuda"
        if kwargs.get("pin_memory"):
            self._pinned.append(func(*args, **{**kwargs, "pin_memory": False}))
            return self._pinned[-1]
        if not to_device and not any(isinstance(t, OnDevice) for t in tensors):
            return func(*args, **kwargs)
        if func is aten._to_copy.default or func is aten.copy_.default:
            copied = self._copied(func, args, kwargs)
            if copied is not None:
                return copied
        if func.namespace == "mccompile" or func is aten.scaled_dot_product_attention.default:
            return self._attend(func, args, kwargs)
        self._together(func, tensors)
        if func in _READS or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
            self.wait("read", str(func))
        if func in _INDEXED and any(t.dtype in _BYTES for t in _tensors(args[1])):
            self.wait("read", f"{func} with a boolean mask")
        if not func.is_view and func not in _FREE and func is not aten._local_scalar_dense.default:
            self.launched[str(func)] += 1
        return self._run(func, args, kwargs, tensors)

    def _run(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        plain = {**kwargs, "device": CPU} if kwargs.get("device") is not None else kwargs
        args, plain = _mapped(lambda v: CPU if isinstance(v, torch.device) else memory_of(v), (args, plain))
        out = func(*args, **plain)
        if func is aten._local_scalar_dense.default:
            return out
        own = {id(t.memory): t for t in tensors if isinstance(t, OnDevice)} if func._schema.is_mutable else {}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            known = own.get(id(value))
            return OnDevice(value) if known is None else known

        return _mapped(wrapped, out)

    def _together(self, func: Any, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, OnDevice) or tensor.dim() == 0:
                continue
            if func not in _INDEXED:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"cuda:0 and cpu! ({func}) at {_place()}"
                )
            self._upload(tensor, later=False)

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy between host and device; None where it stays on the device."""
        target, source = args[:2] if func is aten.copy_.default else (None, args[0])
        later = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if target is None:
            device = kwargs.get("device")
            up = device is not None and torch.device(device).type == "cuda"
            if isinstance(source, OnDevice) and device is not None and not up:
                self.wait("download", "invalid until the device is done" if later else "a copy")
                return func(source.memory, **{**kwargs, "device": CPU}).clone()
            if up and not isinstance(source, OnDevice):
                self._upload(source, later)
                return OnDevice(func(source, **{**kwargs, "device": CPU}).clone())
            return None
        if isinstance(target, OnDevice) and not isinstance(source, OnDevice):
            self._upload(source, later)
        elif isinstance(source, OnDevice) and not isinstance(target, OnDevice):
            if not (later and self._is_pinned(target)):
                self.wait("download", "into memory that is not pinned" if later else "a copy")
        else:
            return None
        memory_of(target).copy_(memory_of(source))
        return target

    def _upload(self, source: torch.Tensor, later: bool) -> None:
        if source.dim() and not later:
            self.wait("upload", f"{source.nbytes} bytes")
        elif source.dim() and not self._is_pinned(source):
            self.wait("pageable", f"{source.nbytes} bytes")

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        place = tensor.untyped_storage()._cdata
        return any(t.untyped_storage()._cdata == place for t in self._pinned)

    def _attend(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One kernel, the project's own attention or torch's. A mask of truth values is first made an added one."""
        self.launched[str(func)] += 1
        if func.namespace != "mccompile":
            given = dict(zip(_SDPA, args, strict=False)) | kwargs
            mask = given.get("attn_mask")
            self._together(func, [t for t in (*(given[n] for n in _SDPA[:3]), mask) if t is not None])
            self.launched["a mask of truth values"] += 2 if mask is not None and mask.dtype == torch.bool else 0
            return OnDevice(attention(**given))
        picks = func._opname in _PICKS
        if func._opname != "pick_keys":
            self.attended.append((args[0].size(2), torch.backends.cuda.cudnn_sdp_enabled()))
        # On a device attention reads how many keys each row sees, not the bounds; keys are picked by the host's groups.
        self._together(func, args[: _PICKS[func._opname]] if picks else [*args[:3], args[4]])
        return OnDevice(func(*(memory_of(a) for a in args), **kwargs))

    # ---- indexing, which Python would do on a real device
    def index(self, tensor: Any, at: Any) -> Any:
        parts = at if isinstance(at, tuple) else (at,)
        self._index_costs(parts)
        found = memory_of(tensor)[tuple(memory_of(p) for p in parts)]
        if any(isinstance(p, torch.Tensor | list) for p in parts):
            self.launched["aten.index.Tensor"] += 1
        return OnDevice(found)

    def assign(self, tensor: Any, at: Any, value: Any) -> None:
        parts = at if isinstance(at, tuple) else (at,)
        self._index_costs(parts)
        if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
            self._upload(value, later=False)
        if not isinstance(tensor, OnDevice):
            raise RuntimeError(f"a tensor of cuda:0 is written into one of the CPU at {_place()}")
        self.launched["aten.copy_.default"] += 1
        tensor.memory[tuple(memory_of(p) for p in parts)] = memory_of(value)
        torch.autograd.graph.increment_version(tensor)

    def _index_costs(self, parts: tuple[Any, ...]) -> None:
        for part in parts:
            if isinstance(part, torch.Tensor) and (part.dtype in _BYTES or part.dim() == 0):
                self.wait("read", "an index")
            elif isinstance(part, list) or (isinstance(part, torch.Tensor) and not isinstance(part, OnDevice)):
                self.wait("upload", "an index")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    match value:
        case tuple() | list():
            return type(value)(_mapped(change, v) for v in value)
        case dict():
            return {k: _mapped(change, v) for k, v in value.items()}
    return change(value)


def _place() -> str:
    """The innermost lines of the product that led here."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 3:
        name = frame.f_code.co_filename
        if "/mccompile/" in name or "/diffusers/" in name:
            found.append(f"{name.rsplit('/mccompile/', 1)[-1].rsplit('/site-packages/', 1)[-1]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "outside of the product"
