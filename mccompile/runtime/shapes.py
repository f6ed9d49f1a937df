"""A tensor that stands for a stream of which only the shape is read, before anything has made it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mccompile.capture.part import Stream
from mccompile.capture.types import Port
from mccompile.runtime.operands import Misplaced


def shaped(port: Port, env: Mapping[str, torch.Tensor], ports: Mapping[str, Port]) -> torch.Tensor:
    """A tensor with the rows of a stream that only a later block makes: video tokens, and others beside them.

    env: the streams that there are. ports: of all streams, by name.
    """
    for name, stream in env.items():
        own = ports[name].beside if name in ports else None
        axis = ports[name].token_axis if own is not None else None
        if own is None or axis is None or axis != port.token_axis or port.beside is None:
            continue
        count = own.tokens(stream.size(axis))
        if count is not None:
            rows = count + sum(n for n in (port.beside.before, port.beside.after) if n is not None)
            return stream.narrow(axis, 0, 1).expand(*stream.shape[:axis], rows, *stream.shape[axis + 1 :])
    raise Misplaced("allocate", Stream(port.name))
