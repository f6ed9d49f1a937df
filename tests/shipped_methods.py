"""Settings at which shipped policies of published methods reuse something in a short run of a tiny model."""

from __future__ import annotations

SETTINGS: dict[str, dict[str, float]] = {
    "foca": {"interval": 3}, "fastercache": {}, "adacache": {}, "toca": {"interval": 3}, "duca": {"ratio": 0.2},
    "cfgcache": {"warmup": 2}, "spectrum": {}, "magcache_branches": {}, "deltadit_parts": {},
}  # fmt: skip
