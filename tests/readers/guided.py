"""Fuzzing that is led by what the code does: `python -m tests.readers.guided READER SECONDS`. It needs atheris.

An input is one byte that says which of the reader's files is changed, and the file. It starts from whole files and from
tests/readers/corpus/READER. Inputs that reach new code are kept in out/fuzz/READER; a fault stands beside them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mccompile"]):
    from tests.readers.fuzz import CORPUS, READERS, changed, read

LARGEST = 1 << 16


def main(name: str, seconds: float) -> None:
    """Never returns: libFuzzer ends the process."""
    reader, seen = READERS[name], Counter[str]()
    place = tempfile.TemporaryDirectory()
    folder = Path(place.name)
    reader.make(folder)
    files = reader.files(folder)
    whole = {path: path.read_bytes() for path in files}
    kept = Path("out", "fuzz", name)
    kept.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files):
        (kept / f"whole-{number}").write_bytes(bytes([number]) + whole[path])

    def one(data: bytes) -> None:
        path = files[data[0] % len(files)] if data else files[0]
        path.write_bytes(data[1:])
        outcome = read(reader, folder)
        seen[outcome] += 1
        path.write_bytes(whole[path])
        if outcome.startswith("raw"):
            raise AssertionError(f"{path.name}: {outcome}")

    def other(data: bytes, largest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5 or not data:
            return atheris.Mutate(data, largest)
        path = files[data[0] % len(files)]
        try:
            made = changed(path, data[1:], chance)
        except (ValueError, IndexError, RecursionError, TypeError):  # no JSON any more
            return atheris.Mutate(data, largest)
        return (data[:1] + made)[:largest]

    own = CORPUS / name
    options = [f"-max_total_time={seconds:.0f}", f"-max_len={LARGEST}", f"-artifact_prefix={kept}-", "-timeout=60",
               "-rss_limit_mb=6000", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    options += [str(kept), *([str(own)] if own.exists() else [])]
    sys.stdout.write(f"begun: {time.time():.0f}\n")
    sys.stdout.flush()
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=other)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
