"""VBench's dimensions of videos (arXiv 2311.17982), measured by its own package in an environment of its own.

VBench asks for numpy below 2 and for one old version of transformers, so it cannot be installed beside this package. A
second Python has it, and `MCCOMPILE_VBENCH` names that Python. VBench fetches the weights of its models itself, into
`VBENCH_CACHE_DIR`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from mccompile.metrics.errors import MetricUnavailable

PYTHON = "MCCOMPILE_VBENCH"  # the environment variable that names the Python of VBench's environment
# What VBench measures of any video; its other dimensions belong to its own prompts.
DIMENSIONS: Final = (
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality",
)  # fmt: skip
_REMEDY = (
    "make an environment of its own (`python3.10 -m venv VBENCH`, then `VBENCH/bin/pip install vbench`) and set "
    f"{PYTHON}=VBENCH/bin/python; or leave VBench out"
)
_NAME = "measured"
# Runs in VBench's Python, which knows nothing of this package.
_PROGRAM = """
import json, pathlib, sys
import torch, vbench
asked = json.load(sys.stdin)
known = pathlib.Path(vbench.__file__).parent / "VBench_full_info.json"
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
vbench.VBench(device, str(known), asked["results"]).evaluate(
    videos_path=asked["videos"], name=asked["name"], dimension_list=asked["dimensions"], mode="custom_input"
)
"""


def read_dimensions(text: str) -> tuple[str, ...]:
    """The dimensions of a list with commas, each once. Raises ValueError for a name that is none of DIMENSIONS."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown or not names:
        raise ValueError(f"`{unknown[0] if unknown else text}` is no dimension of any video: {', '.join(DIMENSIONS)}")
    return names


def vbench(videos: Sequence[Path], dimensions: Sequence[str]) -> dict[str, float]:
    """VBench's value of each dimension, the mean over the video files; 1 is best, and `dynamic_degree` has no best.

    Raises MetricUnavailable (MC0733) where VBench is not installed, fails, or answers with no number.
    """
    with tempfile.TemporaryDirectory(prefix="mccompile-vbench-") as made:
        room = Path(made)
        (room / "videos").mkdir()
        for number, video in enumerate(videos):
            shutil.copyfile(video, room / "videos" / f"{number}{video.suffix or '.mp4'}")
        asked = {
            "videos": str(room / "videos"), "results": str(room), "name": _NAME, "dimensions": list(dimensions),
        }  # fmt: skip
        _run(asked)
        return _read(room / f"{_NAME}_eval_results.json", dimensions)


def _run(asked: Mapping[str, object]) -> None:
    python = os.environ.get(PYTHON) or sys.executable
    try:
        done = subprocess.run(
            [python, "-c", _PROGRAM], input=json.dumps(asked), capture_output=True, encoding="utf-8", errors="replace",
            cwd=str(asked["results"]),
        )  # fmt: skip
    except OSError as error:
        raise MetricUnavailable("VBench", f"{PYTHON} names `{python}`: {error.strerror}", _REMEDY) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise MetricUnavailable("VBench", said[-1].strip() if said else f"`{python}` ended at once", _REMEDY)


def _read(path: Path, dimensions: Sequence[str]) -> dict[str, float]:
    """{dimension: [mean, a result per video]}, as VBench 0.1.5 writes it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        values = {name: float(found[name][0]) for name in dimensions}
    except (OSError, ValueError, TypeError, LookupError) as error:
        why = f"its results have another form than those of VBench 0.1.5: {error}"
        raise MetricUnavailable("VBench", why, _REMEDY) from error
    for name, value in values.items():
        if not math.isfinite(value):
            raise MetricUnavailable("VBench", f"its {name} is {value}", _REMEDY)
    return values
