"""Makes the folder of wheels that a machine with a GPU and no network needs: `python -m tests.device.carry .wheels`.

The machine has torch, Triton, transformers and what they need (docs/gpu.md). The wheels are the rest of what
`mccompile bench gpu` imports, for the machine's own Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

MISSING = (
    "diffusers==0.42.1", "lark>=1.2,<2", "ftfy>=6.1", "wcwidth", "beautifulsoup4>=4.12", "soupsieve",
    "importlib-metadata", "zipp", "cache-dit==1.5.3",
)  # fmt: skip
PLATFORMS = (*(f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)), "manylinux2014_x86_64", "manylinux1_x86_64")
MOST = 48 * 2**20  # bytes: what may be carried, less the checkout itself


def command(folder: Path, python: str) -> list[str]:
    """pip's command line. python: the version of the machine's, such as "3.12"."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    words += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    words += [word for platform in PLATFORMS for word in ("--platform", platform)]
    return [*words, *MISSING]


def main() -> int:
    """Downloads the wheels; 1 where they are too large to be carried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU; default: %(default)s")
    arguments = parser.parse_args()
    subprocess.run(command(arguments.folder, arguments.python), check=True)
    size = sum(wheel.stat().st_size for wheel in arguments.folder.glob("*.whl"))
    sys.stdout.write(f"{len(MISSING)} wheels, {size / 2**20:.1f} MiB\n")
    return int(size > MOST)


if __name__ == "__main__":
    sys.exit(main())
