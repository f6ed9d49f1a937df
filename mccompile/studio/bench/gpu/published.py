"""Times of single steps, integrated over a whole run, at the work that the papers' runs did.

A paper's run says how many of vanilla's FLOPs it computed. The share of the tokens past the warm-up at which our run
computes as many is found, and our time at that share stands beside the paper's speed-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mccompile.studio.bench.gpu.telling import TellRow
from mccompile.studio.bench.ladder_run import WARM_UP, between, schedule
from mccompile.studio.bench.report import Row

SHARES = "shares of the tokens"


@dataclass(frozen=True, slots=True)
class Published:
    """A run of a paper. flops: of vanilla's, None where the paper does not say."""

    name: str
    speed_up: float
    flops: float | None


SKYREELS = (Published("MotionCache slow", 6.28, 30 / 113), Published("MotionCache fast", 7.26, 26 / 113))
MAGI = (
    Published("MotionCache slow", 1.64, 100 / 139), Published("MotionCache fast", 2.07, 64 / 139),
    Published("SCOPE", 2.55, None),
)  # fmt: skip


def skyreels(rows: Sequence[Row], chunks: int, tell: TellRow) -> None:
    """177 frames in two windows. rows: of the ladder. Tells nothing where no share was timed."""
    own = torch.cat([schedule(chunks), schedule(chunks, ready=1)])
    active, warm = own > 0, (own > 0) & (own <= WARM_UP)

    def spent(share: float) -> torch.Tensor:
        return (torch.where(warm, 1.0, share) * active).mean(1)

    _beside(SKYREELS, rows, spent, len(own), tell)


def magi(rows: Sequence[Row], tell: TellRow) -> None:
    """A call whose chunks are all being denoised, again and again. Tells nothing where no share was timed."""
    _beside(MAGI, rows, lambda share: torch.tensor([share]), 1, tell)


def _beside(
    runs: Sequence[Published], rows: Sequence[Row], spent: Callable[[float], torch.Tensor], calls: int, tell: TellRow
) -> None:
    """spent: by the share of the tokens past the warm-up, the share that each call computes."""
    vanilla = min((_number(r, "ms") for r in rows if r.get("kind") in ("baseline", "compute")), default=None)
    shares = [r for r in rows if r.get("kind") == SHARES]
    if vanilla is None or len(shares) < 2:
        return
    curves = {key: sorted((_number(r, "tokens"), _number(r, key)) for r in shares) for key in ("ms", "flops")}

    def whole(key: str, share: float) -> float:
        return sum(between(curves[key], float(x)) for x in spent(share))

    exact = calls * vanilla / whole("ms", 1.0)
    tell({"name": "exact", "speed_up": exact, "flops": whole("flops", 1.0) / calls})
    for run in runs:
        row: Row = {"name": run.name, "published": run.speed_up}
        if run.flops is not None:
            share = solved(lambda s: whole("flops", s) / calls, run.flops)
            speed_up = calls * vanilla / whole("ms", share)
            row = {**row, "flops": run.flops, "share": share, "speed_up": speed_up, "ratio": speed_up / run.speed_up}
        tell(row)


def solved(cost: Callable[[float], float], wanted: float) -> float:
    """The share from 0 to 1 at which a cost that grows with it is the wanted one; the nearer end where none is."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < wanted else (low, middle)
    return (low + high) / 2


def _number(row: Row, key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float)
    return float(value)
