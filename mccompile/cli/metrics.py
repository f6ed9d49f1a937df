"""`mccompile metrics`: measures how near a video is to another one of the same generation."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mccompile.cli.options import location, vbench_dimensions
from mccompile.cli.terminal import aligned, say

if TYPE_CHECKING:
    from mccompile.metrics import Measured

VBENCH_HELP = "also these dimensions of VBench, by its own package in an environment of its own"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = verbs.add_parser("metrics", help="compare a video with vanilla's", description=__doc__)
    parser.add_argument("reference", type=location, metavar="VANILLA", help="video file, or folder of frames")
    parser.add_argument("video", type=location, metavar="VIDEO", help="video file, or folder of frames")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS; needs torchvision and its AlexNet weights")
    parser.add_argument("--vbench", type=vbench_dimensions, default=(), metavar="A,B", help=VBENCH_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """A line per measure, or JSON."""
    from mccompile.metrics import measure_clips, read_clip

    reference, video = read_clip(arguments.reference), read_clip(arguments.video)
    found = measure_clips(video, reference, arguments.lpips)
    dimensions = compared_by_vbench(arguments.video, arguments.reference, arguments.vbench)
    if arguments.json:
        say(json.dumps({**numbers(found), **({"vbench": dimensions} if dimensions else {})}))
        return 0
    rows = [(f"VBench {name}", f"{own:.4f}", f"vanilla {vanilla:.4f}") for name, (own, vanilla) in dimensions.items()]
    for line in aligned([*lines(found), *rows]):
        say(line)
    return 0


def compared_by_vbench(video: Path, reference: Path, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Each dimension's value of both video files. Raises MetricUnavailable (MC0733)."""
    from mccompile.metrics import vbench
    from mccompile.metrics.errors import MetricUnavailable

    if not names:
        return {}
    for path in (video, reference):
        if path.is_dir():
            raise MetricUnavailable("VBench", f"`{path}` is a folder of frames", "give video files, which VBench reads")
    own, vanilla = vbench([video], names), vbench([reference], names)
    return {name: (own[name], vanilla[name]) for name in names}


def lines(found: Measured) -> list[tuple[str, str, str]]:
    """(measure, value, what it says)."""
    moved = f"the {found.moving_share:.0%} of pixels that move in vanilla"
    rows = [
        ("PSNR", decibel(found.psnr), "of all values, in dB"),
        ("SSIM", f"{found.ssim:.4f}", "1 where equal"),
    ]
    if found.ms_ssim is not None:
        rows.append(("MS-SSIM", f"{found.ms_ssim:.4f}", "1 where equal"))
    if found.lpips is not None:
        rows.append(("LPIPS", f"{found.lpips:.4f}", "0 where equal"))
    rows += [
        ("PSNR static", decibel(found.static), "of the pixels that stand still in vanilla"),
        ("PSNR moving", decibel(found.moving), f"of {moved}"),
        ("flicker", f"{found.flicker:.2f}", "levels of 255 by which changes from frame to frame differ"),
        ("sharpness", f"{found.sharpness:.3f}", f"vanilla {found.reference_sharpness:.3f}"),
        ("worst frame", str(found.worst), f"PSNR {decibel(found.per_frame[found.worst])}"),
    ]
    return rows


def decibel(value: float | None) -> str:
    """PSNR for people: `equal` for inf, `-` where there is nothing to compare."""
    if value is None:
        return "-"
    return "equal" if math.isinf(value) else f"{value:.2f}"


def numbers(found: Measured) -> dict[str, object]:
    """The measures for JSON, which has no infinity: equal is null."""
    whole = {**asdict(found), "worst": found.worst}
    whole["per_frame"] = [finite(v) for v in found.per_frame]
    return {k: finite(v) if isinstance(v, float) else v for k, v in whole.items()}


def finite(value: float) -> float | None:
    """None for infinity."""
    return value if math.isfinite(value) else None
