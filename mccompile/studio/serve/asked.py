"""The JSON that the page's script sends, read as what it must be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from mccompile.studio.serve.checked import MOST_TEXT
from mccompile.studio.serve.errors import RequestRefused

MOST_BYTES = 8 * MOST_TEXT  # of a request
_REMEDY = "open the page itself, which asks for what there is"
_Kind = TypeVar("_Kind", str, int, bool)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The JSON object of a request."""

    values: Mapping[str, object]

    @classmethod
    async def of(cls, request: Request) -> PageRequest:
        """What a request holds. Raises RequestRefused (MC0763) where it is too large, or no object."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MOST_BYTES:
                raise RequestRefused(413, f"it is larger than {MOST_BYTES:,} bytes", "shorten the policy")
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise RequestRefused(400, "its content is no JSON", _REMEDY) from None
        if not isinstance(found, dict):
            raise RequestRefused(400, "its content is no object", _REMEDY)
        return cls(found)

    def get(self, key: str, default: _Kind) -> _Kind:
        """Its entry, of the kind of the default. Raises RequestRefused (MC0763) for one of another kind."""
        found = self.values.get(key, default)
        if type(found) is not type(default):
            raise RequestRefused(400, f"`{key}` is no {type(default).__name__}", _REMEDY)
        return found

    def settings(self, key: str) -> dict[str, float | str]:
        """Its entry, an object of finite numbers and of words. Raises RequestRefused (MC0763)."""
        found = self.values.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(v, str) or _finite(v) for v in found.values()):
            raise RequestRefused(400, f"`{key}` is no object of numbers and words", _REMEDY)
        return {str(name): value if isinstance(value, str) else float(value) for name, value in found.items()}


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) and abs(value) < 2**63) or (isinstance(value, float) and math.isfinite(value))
