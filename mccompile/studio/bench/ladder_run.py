"""Estimates a 177-frame run of SkyReels-V2-DF-1.3B from the times of single steps, which takes minutes on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline

from mccompile.studio.bench.report import Column, Plot, Report, Row
from mccompile.studio.bench.subjects import Subject

COLUMNS = (
    Column("name", "run of 177 frames"), Column("seconds_in_all", "s", ".0f"), Column("tokens", "tokens", ".1%"),
    Column("speed_up", "speed-up", ".2f"), Column("published", "published", ".2f"),
)  # fmt: skip
PUBLISHED = (("MotionCache slow (paper, 245 s of 1540 s)", 6.28), ("MotionCache fast (paper, 212 s of 1540 s)", 7.26))
WARM_UP = 5
AR_STEP, STEPS = 5, 50
SHARES = "shares of the tokens"
PLOT = Plot("tokens", "speed_up", "share of the tokens computed", "speed-up over vanilla", "name", log_x=True)


def schedule(chunks: int, ready: int = 0, steps: int = STEPS, ar_step: int = AR_STEP) -> torch.Tensor:
    """Own step of each chunk at each row of one window, from 1, int64 [rows, chunks]; 0 where it is not denoised.

    ready: chunks that an earlier window has finished. The pipeline's own schedule: it asks nothing of a pipeline.
    """
    build = SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix
    template = torch.linspace(999, 1, steps)
    _, index, update, _ = build(None, chunks, template, chunks, ar_step, ready, 1)
    return torch.where(update, index, 0)


def integrated(subject: Subject, rows: Sequence[Row]) -> tuple[Row, ...]:
    """Both windows of the run (the second begins with one chunk of the first) from the rows of ladder_steps.measure.

    A row's time follows from how many tokens it computes: between the measured shares it is linear in tokens. Shares
    hold for chunks past their warm-up of 5 steps. Raises StopIteration where no share was measured.
    """
    own = torch.cat([schedule(subject.chunks), schedule(subject.chunks, ready=1)])
    active, warm = own > 0, (own > 0) & (own <= WARM_UP)
    vanilla = _number(rows[0], "ms") / 1e3 * len(own)
    out: list[Row] = [{"name": "vanilla", "seconds_in_all": vanilla, "tokens": 1.0, "speed_up": 1.0}]
    curve = sorted((_number(r, "tokens"), _number(r, "ms")) for r in rows if r["kind"] == SHARES)
    for share in (1.0, 0.5, 0.25, 0.1):
        spent = (torch.where(warm, 1.0, share) * active).mean(1)
        seconds = sum(between(curve, float(x)) for x in spent) / 1e3
        name = "exact" if share == 1.0 else f"{share:.0%} of the active tokens"
        tokens = float(spent.mean())
        out.append({"name": name, "seconds_in_all": seconds, "tokens": tokens, "speed_up": vanilla / seconds})
    out += [{"name": name, "published": value} for name, value in PUBLISHED]
    return tuple(out)


def report(subject: Subject, steps: Report) -> Report:
    """The integrated run beside the published figures. steps: the report that ladder_steps made of the subject."""
    title = "SkyReels-V2-DF-1.3B, 177 frames at 540P, random weights, times of single steps integrated"
    return Report("ladder_run", title, COLUMNS, integrated(subject, steps.rows), PLOT, steps.settings)


def between(curve: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between the points (share, ms), and along the first two below the first."""
    after = next((i for i, (x, _) in enumerate(curve) if x >= at), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[max(after, 1) - 1], curve[max(after, 1)]
    return max(y0 + (y1 - y0) * (at - x0) / (x1 - x0), 0.0)


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float)
    return float(value)
