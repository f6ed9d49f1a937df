"""When a generation begins and ends: with the call of the pipeline, whatever ends it.

The pipeline's class is exchanged for one of the same name whose `__call__` tells, until `release`. The exchanged class
also keeps what the user has: it saves the pipeline with the transformer that is the user's, and refuses to be copied.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator

from torch import nn

from mccompile.pipelines.errors import CopyRefused
from mccompile.runtime.errors import NoClock
from mccompile.runtime.stand_in import stand_in_of, unwrapped

_numbers = itertools.count()
_OWN = "_watched_class"  # of a watched class: the one that it stands for


class Watch:
    """Watches the calls of one pipeline. Calls of several threads are served one after the other.

    begun: called before a generation. ended: called when it is over.
    """

    def __init__(self, pipe: object, ended: Callable[[], None], begun: Callable[[], None] = lambda: None) -> None:
        self._pipe = pipe
        self._begun, self._ended = begun, ended
        self._own: type = vars(type(pipe)).get(_OWN, type(pipe))
        self._made = _watched(self._own, self)
        self._generation: int | None = None
        self.visited = False  # the user's code runs between the steps of the generation under way
        self._lock = threading.RLock()
        pipe.__class__ = self._made

    def release(self) -> None:
        """Gives the pipeline its own class back, unless another watch has taken this one's place."""
        if type(self._pipe) is self._made:
            self._pipe.__class__ = self._own

    def generation(self) -> int:
        """Number of the generation under way. Raises NoClock (MC0601) outside of one."""
        if self._generation is None:
            raise NoClock
        return self._generation

    @contextlib.contextmanager
    def under_way(self, visited: bool) -> Iterator[None]:
        """A generation: the call of the pipeline inside. visited: code of others runs between its calls."""
        with self._lock:
            before = self._generation, self.visited
            self._generation, self.visited = next(_numbers), visited
            try:
                self._begun()
                yield
            finally:
                self._generation, self.visited = before
                self._ended()


def _watched(own: type, watch: Watch) -> type:
    """A class like `own` whose calls are watched."""

    @functools.wraps(own.__call__)
    def call(self: object, *args: object, **kwargs: object) -> object:
        with watch.under_way(_visited(self, (*args, *kwargs.values()))):
            return own.__call__(self, *args, **kwargs)

    def save_pretrained(self: object, *args: object, **kwargs: object) -> object:
        with _given_back(self):
            return own.save_pretrained(self, *args, **kwargs)  # type: ignore[attr-defined]

    def refuse(self: object, *_: object) -> object:
        raise CopyRefused(own.__name__)

    members: dict[str, object] = {_OWN: own, "__call__": call, "__deepcopy__": refuse, "__reduce_ex__": refuse}
    if callable(getattr(own, "save_pretrained", None)):
        members["save_pretrained"] = functools.wraps(own.save_pretrained)(save_pretrained)  # type: ignore[attr-defined]
    named = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, (own,), members | named)


def _visited(pipe: object, arguments: tuple[object, ...]) -> bool:
    """Whether code that is not the pipeline's runs between its calls: a callback, or a guider, which skips layers."""
    parts = (part for name, part in vars(pipe).items() if not name.startswith("_"))
    return any(map(callable, arguments)) or any(callable(getattr(part, "prepare_models", None)) for part in parts)


@contextlib.contextmanager
def _given_back(pipe: object) -> Iterator[None]:
    """Inside, the transformers of the pipeline are the user's own."""
    parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
    taken = {name: part for name, part in parts.items() if stand_in_of(part) is not None}
    put = pipe.register_modules  # type: ignore[attr-defined]
    put(**{name: unwrapped(part) for name, part in taken.items()})
    try:
        yield
    finally:
        put(**taken)
