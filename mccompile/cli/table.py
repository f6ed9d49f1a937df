"""The table of a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mccompile.cli.terminal import aligned

if TYPE_CHECKING:
    from mccompile.generate.compare import Comparison, ComparisonRow
    from mccompile.models.embedded.judge import Verdict

_HEADS = ("", "policy", "seconds", "speed-up", "tokens", "FLOPs", "PSNR", "SSIM")
_RIGHT = frozenset(range(2, len(_HEADS)))


def table(found: Comparison) -> list[str]:
    """One line per way, under a line of heads; the judge's column only where it judged.

    seconds: median of the runs. tokens, FLOPs: computed, of vanilla's. PSNR in dB and SSIM: against vanilla.
    """
    judged = found.rows[0].verdict is not None
    rows = [_HEADS + (("judge",) if judged else ())]
    for row in found.rows:
        cells = (
            row.name,
            row.policy,
            f"{row.median:.2f}",
            f"{found.speed_up(row):.2f}x",
            f"{row.tokens:.1%}",
            f"{row.flops:.1%}",
            *_against_vanilla(row, found.rows[0]),
        )
        rows.append(cells + ((_verdict(row.verdict),) if judged else ()))
    return aligned(rows, _RIGHT)


def _against_vanilla(row: ComparisonRow, vanilla: ComparisonRow) -> tuple[str, str]:
    if row is vanilla:
        return "-", "-"
    return ("equal" if math.isinf(row.psnr) else f"{row.psnr:.2f}"), f"{row.ssim:.4f}"


def _verdict(verdict: Verdict | None) -> str:
    """What was seen, and whether it is what the prompt says."""
    if verdict is None:
        return ""
    colour = ("colour", verdict.colour_right, verdict.colour_seen)
    motion = ("motion", verdict.motion_right, verdict.motion_seen)
    said = (f"{what} {'right' if right else 'wrong'} ({saw or 'none seen'})" for what, right, saw in (colour, motion))
    return ", ".join(said)
