"""A plugin of pytest that writes which functions of the product each test calls, and how long the test takes.

It traces calls only, so a run takes about twice its time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import pytest

from tests.mutation.codes import ROOT, name

PRODUCT = str(ROOT / "mccompile")


@dataclass(eq=False)
class Reached:
    """place: the file that is written. It holds, for each test, seconds of processor time and names of functions."""

    place: Path
    rooms: Collection[str]
    found: dict[str, tuple[float, list[str]]] = field(default_factory=dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        seen: set[CodeType] = set()

        def called(frame: FrameType, event: str, arg: object) -> None:
            seen.add(frame.f_code)

        begun = time.process_time()
        sys.settrace(called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            names = {name(str(Path(code.co_filename).relative_to(ROOT)), code) for code in seen if _ours(code)}
            kept = sorted(n for n in names if n.split("/")[1] in self.rooms)
            self.found[item.nodeid] = round(time.process_time() - begun, 2), kept

    def pytest_sessionfinish(self) -> None:
        known = json.loads(self.place.read_text()) if self.place.exists() else {}
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.place.write_text(json.dumps(known | self.found))


def _ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PRODUCT) and not code.co_name.startswith("<module>")
