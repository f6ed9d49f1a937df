"""What one run of a prompt shows, as two tables of numbers that a file keeps whole."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NumberTable = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Samples:
    """One run. pairs: a row for each chunk, step and earlier step of it: how far everything moved between both.

    steps: a row for each chunk and step. The columns have names; `branch` is an index of `branches`.
    """

    branches: tuple[str, ...]
    pair_names: tuple[str, ...]
    pairs: NumberTable
    step_names: tuple[str, ...]
    steps: NumberTable

    def pair(self, name: str) -> NumberTable:
        """A column of `pairs`."""
        return self.pairs[:, self.pair_names.index(name)]

    def step(self, name: str) -> NumberTable:
        """A column of `steps`."""
        return self.steps[:, self.step_names.index(name)]


def write_samples(path: Path, samples: Samples, about: Mapping[str, object]) -> None:
    """Writes a file that is whole or not there, whenever we are killed. about: what it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.part")
    said = {"about": dict(about), "branches": samples.branches, "pair_names": samples.pair_names}
    text = json.dumps({**said, "step_names": samples.step_names})
    with draft.open("wb") as file:
        np.savez(file, said=np.array(text), pairs=samples.pairs, steps=samples.steps)
    draft.replace(path)


def read_samples(path: Path, about: Mapping[str, object]) -> Samples | None:
    """What was kept of a run; None where there is no file, it is damaged, or it was measured on something else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            said, pairs, steps = json.loads(str(kept["said"])), kept["pairs"], kept["steps"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    match said:
        case {"about": dict(found), "branches": [*branches], "pair_names": [*one], "step_names": [*two]}:
            same = found == json.loads(json.dumps(dict(about)))
            whole = pairs.ndim == steps.ndim == 2 and pairs.shape[1] == len(one) and steps.shape[1] == len(two)
            if same and whole and np.isfinite(pairs).all():
                return Samples(tuple(branches), tuple(one), pairs, tuple(two), steps)
    return None
