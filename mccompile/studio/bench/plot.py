"""Plots as plain SVG, drawn from a benchmark's JSON and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22", "#e377c2")


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels. low < high are the ends of the axis; log: its scale is logarithmic."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @staticmethod
    def over(values: Sequence[float], log: bool, start: float, end: float) -> Axis:
        """The axis that holds all values, with some air at its ends."""
        low, high = min(values), max(values)
        if log:
            return Axis(low / 1.2, high * 1.2, True, start, end)
        air = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
        return Axis(low - air if low < 0 or low > air else 0.0, high + air, False, start, end)

    def pixel(self, value: float) -> float:
        low, high, at = ((math.log(v) if self.log else v) for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the axis, 3 to 8 of them on a linear one."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            few = len(powers) < 5
            found = [m * 10.0**p for p in powers for m in ((1, 2, 5) if few else (1,))]
            return [v for v in found if self.low <= v <= self.high]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def draw(document: Mapping[str, object]) -> str:
    """The SVG of a benchmark's JSON document; rows without a number that an axis can show are left out."""
    plot, rows = document["plot"], document["rows"]
    assert isinstance(plot, Mapping)
    assert isinstance(rows, Sequence)
    points = [(str(r[plot["group"]]), *_point(r, plot), str(r.get(plot["label"]) or "")) for r in rows if _has(r, plot)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    parts = [head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', _text(LEFT, 22, document["title"], 14)]
    if points:
        x = Axis.over([p[1] for p in points], bool(plot["log_x"]), LEFT, WIDTH - RIGHT)
        y = Axis.over([p[2] for p in points], bool(plot["log_y"]), HEIGHT - BOTTOM, TOP)
        front = sorted(_point(r, plot) for r in rows if _has(r, plot) and r.get(plot.get("front", "")))
        parts += [*_frame(x, y, plot), *_front(front, x, y), *_series(points, x, y, bool(plot["line"]))]
    return "\n".join((*parts, "</svg>")) + "\n"


def _has(row: Mapping[str, object], plot: Mapping[str, object]) -> bool:
    """Whether a row has a number on both axes; a logarithmic one shows those above 0 alone."""
    found = [(row.get(str(plot[axis])), plot[f"log_{axis}"]) for axis in ("x", "y")]
    return all(isinstance(value, int | float) and (value > 0 or not log) for value, log in found)


def _point(row: Mapping[str, object], plot: Mapping[str, object]) -> tuple[float, float]:
    x, y = row[str(plot["x"])], row[str(plot["y"])]
    assert isinstance(x, int | float)
    assert isinstance(y, int | float)
    return float(x), float(y)


def _frame(x: Axis, y: Axis, plot: Mapping[str, object]) -> Iterator[str]:
    for value in x.ticks():
        at = x.pixel(value)
        yield f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>'
        yield _text(at, HEIGHT - BOTTOM + 16, f"{value:g}", 11, "middle")
    for value in y.ticks():
        at = y.pixel(value)
        yield f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#e5e5e5"/>'
        yield _text(LEFT - 6, at + 4, f"{value:g}", 11, "end")
    yield (
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - RIGHT - LEFT}" height="{HEIGHT - BOTTOM - TOP}" '
        'fill="none" stroke="#333"/>'
    )
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 20, plot["x_label"], 12, "middle")
    yield _text(LEFT, TOP - 6, plot["y_label"], 12)


def _front(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Iterator[str]:
    if len(points) > 1:
        path = " ".join(f"{x.pixel(a):.1f},{y.pixel(b):.1f}" for a, b in points)
        yield f'<polyline points="{path}" fill="none" stroke="#999" stroke-dasharray="5 4"/>'


def _series(points: Sequence[tuple[str, float, float, str]], x: Axis, y: Axis, line: bool) -> Iterator[str]:
    for number, group in enumerate(dict.fromkeys(p[0] for p in points)):
        colour = COLOURS[number % len(COLOURS)]
        own = sorted((p for p in points if p[0] == group), key=lambda p: p[1])
        places = [(x.pixel(p[1]), y.pixel(p[2])) for p in own]
        if line and len(places) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        for (a, b), point in zip(places, own, strict=True):
            yield f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>'
            if point[3]:
                yield _text(a + 5, b - 5, point[3], 9)
        at = TOP + 12 + 17 * number
        yield f'<circle cx="{WIDTH - RIGHT + 14}" cy="{at - 4}" r="4" fill="{colour}"/>'
        yield _text(WIDTH - RIGHT + 24, at, group, 11)


def _text(x: float, y: float, text: object, size: int, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(str(text))}</text>'
