"""The page of a search: every trial on the plane of speed and quality, the Pareto front, and what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from mccompile.studio.explore.emit import in_dimensions, said
from mccompile.studio.explore.goals import front
from mccompile.studio.explore.outcome import EQUAL, Trial
from mccompile.studio.explore.search import Found
from mccompile.studio.explore.space import Point

HEADS = (
    "trial", "policy", "parameters", "FLOPs", "speed-up", "in time", "PSNR", "worst frame", "SSIM", "LPIPS", "judge",
    "VBench",
)  # fmt: skip
TEXTS = frozenset({1, 2, 11})  # columns of words
PAGE = "report.html"
_TOP = 100.0  # dB at which the plot shows equal videos


@dataclass(frozen=True, slots=True)
class PageRow:
    """A trial in the table; whether it is on the front."""

    cells: tuple[str, ...]
    front: bool


def settings_of(point: Point) -> str:
    """The picks and parameters of a point as they are given on a command line."""
    words = [f"{name}={word}" for name, word in point.picks.items()]
    return " ".join([*words, *(f"{name}={value:g}" for name, value in point.values.items())]) or "-"


def cells_of(trial: Trial) -> tuple[str, ...]:
    """A row of the table, under HEADS."""
    own = trial.outcome
    psnr, frame = ("equal" if v >= EQUAL else f"{v:.2f} dB" for v in (own.psnr, own.frame))
    return (
        str(trial.number),
        trial.point.policy,
        settings_of(trial.point),
        f"{own.flops:.1%}",
        f"{own.speed_up:.2f}x",
        f"{own.vanilla_seconds / own.seconds:.2f}x",
        psnr,
        frame,
        f"{own.ssim:.4f}",
        "-" if own.lpips is None else f"{own.lpips:.4f}",
        "-" if own.judged is None else f"{own.judged:.2f}",
        in_dimensions(own) or "-",
    )


def render(
    found: Found,
    summary: str,
    about: Mapping[str, object],
    written: Sequence[tuple[str, str, str]],
    statics: Sequence[str],
) -> str:
    """One HTML file that opens from disk and asks no network for anything.

    summary: what was done, in a sentence. written: of each policy file its name, its trial and its held-out result.
    statics: the policies whose points are static schedules.
    """
    here = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    best = front(found.trials)
    policies = list(dict.fromkeys(t.point.policy for t in found.trials))
    data = {
        "front": _places(best),
        "policies": [
            {"name": p, "static": p in statics, **_places([t for t in found.trials if t.point.policy == p])}
            for p in policies
        ],
    }
    on_front = {t.number for t in best}
    return here.get_template("page.html.j2").render(
        title=", ".join(p for p in policies if p not in statics) or "static schedules",
        said=summary,
        heads=HEADS,
        texts=TEXTS,
        rows=[PageRow(cells_of(t), t.number in on_front) for t in (*best, *_others(found.trials, on_front))],
        failures=[f"trial {f.number}, {'skipped' if f.skipped else 'failed'}: {f.why}" for f in found.failures],
        about=about,
        written=written,
        # `<` must not end the script element that the data stands in.
        json=json.dumps(data).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )


def _others(trials: Sequence[Trial], on_front: set[int]) -> list[Trial]:
    return [t for t in trials if t.number not in on_front]


def _places(trials: Sequence[Trial]) -> dict[str, list[object]]:
    """Where trials stand on the plane, and what is said of each."""
    return {
        "x": [t.outcome.speed_up for t in trials],
        "y": [min(_TOP, t.outcome.psnr) for t in trials],
        "text": [f"trial {t.number}: {t.point.policy} {settings_of(t.point)}<br>{said(t.outcome)}" for t in trials],
    }
