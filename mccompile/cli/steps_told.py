"""The steps of a plan with their reasons: as a table, and as a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mccompile.cli.terminal import aligned
from mccompile.policy.reasons import StepReason

_HEADS = ("step", "phase", "action", "account before", "after", "reason")
_COLOURS = {"compute": "#3b6fb6", "reuse": "#d9e4f2", "dynamic": "#f0b35a"}
_WORDS = {"compute": "computed", "reuse": "reused", "dynamic": "left to the run"}
_CELL, _TOP, _CURVE, _LEFT = 18, 48, 90, 60


def steps_table(steps: Sequence[StepReason]) -> Iterator[str]:
    """A line per step: its phase, its action, the chunk's accounts before and after it, and why."""
    rows = [
        (str(s.step), s.phase or "?", s.action, _accounts(s.before), _accounts(s.after), s.why + compared(s))
        for s in steps
    ]
    kept = any(s.before != () for s in steps)
    left_out = () if kept else (3, 4)
    yield from aligned([_without(_HEADS, left_out), *(_without(row, left_out) for row in rows)], frozenset({0}))


def _without(row: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(cell for i, cell in enumerate(row) if i not in places)


def _accounts(of: tuple[tuple[str, float], ...] | None) -> str:
    if of is None:
        return "?"
    return ", ".join(f"{value:.4g}" if len(of) == 1 else f"{name} {value:.4g}" for name, value in of)


def compared(one: StepReason) -> str:
    """The values of a step's comparisons: `: accumulate(drift) 0.0841 < threshold 0.1`."""
    text = "; ".join(f"{c.left} {c.value:.4g} {c.sign} {c.right} {c.limit:.4g}" for c in one.compared)
    return f": {text}" if text else ""


def steps_svg(title: str, steps: Sequence[StepReason]) -> str:
    """The plan as a drawing: a cell per step, the phases above, and below the value that a condition compares."""
    width = _LEFT + _CELL * len(steps) + 20
    height = _TOP + _CELL + _CURVE + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="18" font-size="14">{escape(title)}</text>',
        *_phases(steps),
        *(_cell(s) for s in steps),
        *_curve(steps),
        *_legend(height - 14),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(step: int) -> int:
    return _LEFT + _CELL * step


def _cell(one: StepReason) -> str:
    told = escape(f"step {one.step}, {one.phase or '?'}: {_WORDS[one.action]}; {one.why}{compared(one)}")
    place = f'x="{_x(one.step)}" y="{_TOP}" width="{_CELL - 2}" height="{_CELL - 2}"'
    return f'<rect {place} fill="{_COLOURS[one.action]}"><title>{told}</title></rect>'


def _phases(steps: Sequence[StepReason]) -> Iterator[str]:
    for i, one in enumerate(steps):
        if i == 0 or steps[i - 1].phase != one.phase:
            yield f'<text x="{_x(i)}" y="{_TOP - 8}">{escape(one.phase or "?")}</text>'


def _curve(steps: Sequence[StepReason]) -> Iterator[str]:
    """The first comparison of each step: a dot for its value, a line for what it is compared with."""
    known = [(s.step, s.compared[0]) for s in steps if s.compared]
    if not known:
        return
    top = max(max(c.value, c.limit) for _, c in known) or 1.0
    base = _TOP + _CELL + _CURVE + 10

    def y(value: float) -> float:
        return round(base - _CURVE * max(value, 0.0) / top, 2)

    yield f'<text x="10" y="{y(known[0][1].limit)}">{known[0][1].limit:.3g}</text>'
    yield f'<line x1="{_LEFT}" y1="{base}" x2="{_x(len(steps))}" y2="{base}" stroke="#999"/>'
    for step, c in known:
        line = f'x1="{_x(step)}" y1="{y(c.limit)}" x2="{_x(step + 1)}" y2="{y(c.limit)}"'
        yield f'<line {line} stroke="#b03030" stroke-dasharray="3 2"/>'
        yield f'<circle cx="{_x(step) + _CELL / 2 - 1}" cy="{y(c.value)}" r="3" fill="#333"/>'


def _legend(y: int) -> Iterator[str]:
    for i, (action, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 110 * i
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 17}" y="{y}">{_WORDS[action]}</text>'
