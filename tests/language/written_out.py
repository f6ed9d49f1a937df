"""Policies with functions, and the same policies with every call written out."""

from __future__ import annotations

_TEXT = """policy p {{
  {functions}
  {signals}
  phase first for 3 steps {{ compute }}
  phase cache {{ reuse token while {condition} }}
  layers blocks[*] {{ keep residual  {stand_in} }}
}}
"""


def _policy(condition: str, functions: str = "", signals: str = "", stand_in: str = "") -> str:
    return _TEXT.format(condition=condition, functions=functions, signals=signals, stand_in=stand_in)


_PAIRS = {
    "a number": (
        _policy("gate(rel_l1(latent), 0.2) < 1", "function gate(x, limit = 0.1) = max(x - limit, 0)"),
        _policy("max(rel_l1(latent) - 0.2, 0) < 1"),
    ),
    "a default, behind a pipe": (
        _policy("(rel_l1(latent) | gate()) < 1", "function gate(x, limit = 0.1) = max(x - limit, 0)"),
        _policy("max(rel_l1(latent) - 0.1, 0) < 1"),
    ),
    "a tensor and a word": (
        _policy("moved(latent, cell = token) < 1", "function moved(x, cell = chunk) = rel_l1(x, kept(x), over = cell)"),
        _policy("rel_l1(latent, kept(latent), over = token) < 1"),
    ),
    "a list, a name of a set, a share": (
        _policy(
            "fitted(modulation, [1, 0.5], 40%) + fitted(modulation, set = \"flux\", floor = 20%) < 1",
            "function fitted(x, set, floor) = polynomial(rel_l1(x), set) + floor",
        ),
        _policy('polynomial(rel_l1(modulation), [1, 0.5]) + 40% + (polynomial(rel_l1(modulation), "flux") + 20%) < 1'),
    ),
    "a condition": (
        _policy("small(rel_l1(latent)) and not small(sigma)", "function small(x) = x < 0.1"),
        _policy("rel_l1(latent) < 0.1 and not (sigma < 0.1)"),
    ),
    "functions of functions, names that meet": (
        _policy(
            "outer(rel_l1(latent)) < 1",
            "function inner(y, x) = y - 2 * x  function outer(x) = inner(x = sigma, y = x) + inner(x, fraction)",
        ),
        _policy("(rel_l1(latent) - 2 * sigma) + (rel_l1(latent) - 2 * fraction) < 1"),
    ),
    "accounts and signals as arguments": (
        _policy(
            "debt(drift) < 0.1",
            "function debt(x) = accumulate(2 * x, into = owed)",
            "signal drift = rel_l1(latent)",
        ),
        _policy("accumulate(2 * drift, into = owed) < 0.1", "", "signal drift = rel_l1(latent)"),
    ),
    "what stands in": (
        _policy(
            "rel_l1(latent) < 1",
            "function line(r, far) = kept(r) + far * (kept(r) - kept(r, 2))",
            stand_in="reuse as line(residual, 0.5)",
        ),
        _policy("rel_l1(latent) < 1", stand_in="reuse as kept(residual) + 0.5 * (kept(residual) - kept(residual, 2))"),
    ),
}
CALLED = {name: called for name, (called, _) in _PAIRS.items()}
WRITTEN = {name: written for name, (_, written) in _PAIRS.items()}
