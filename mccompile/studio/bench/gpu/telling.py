"""How a stage tells what it has found: row by row, so that what it found before it was ended is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from mccompile.studio.bench.report import Row

TellRow: TypeAlias = Callable[[Row], None]
Earlier: TypeAlias = Mapping[str, Sequence[Row]]  # the rows of the stages before
