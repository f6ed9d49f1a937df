"""Reads arrays of numbers from the zip files of numpy, which may come from anybody."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 8 * 2**30  # of all arrays together, unpacked
RATIO = 1_100  # zlib packs nothing tighter than 1032 to 1


def read_arrays(path: Path) -> dict[str, NDArray[np.uint8]]:
    """The arrays of bytes in the file, by name. Raises ValueError where they are something else, and OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > min(MOST_BYTES, RATIO * path.stat().st_size):
            raise ValueError(f"{path.name} unpacks to {size} bytes")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            found = {name: kept[name] for name in kept.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, MemoryError, SyntaxError) as error:
        raise ValueError(f"{path.name} is no file of arrays: {str(error).lower()}") from error
    odd = next((name for name, array in found.items() if array.dtype != np.uint8), None)
    if odd is not None:
        raise ValueError(f"{path.name} has an array `{odd:.40}` that is not of bytes")
    return found
