"""Writes the result of a benchmark as JSON: one table with the raw numbers, the machine and the command.

`tests/house/readme.py` puts these files into the pages: title, command, machine, date, columns, rows.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch

from mccompile.generate.errors import OutputRefused
from mccompile.generate.places import put, reason

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
Row: TypeAlias = Mapping[str, Json]
SCHEMA = "mccompile.bench/1"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: key of the rows, heading, and the format of str.format ("" for text)."""

    key: str
    heading: str
    form: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn from the rows: one line per value of `group` (points alone where `line` is False)."""

    x: str
    y: str
    x_label: str
    y_label: str
    group: str
    log_x: bool = False
    log_y: bool = False
    line: bool = True
    label: str = ""  # the key of the text beside a point, if any
    front: str = ""  # the key of a truth: points where it holds are joined by a dashed line, if any


@dataclass(frozen=True, slots=True)
class Report:
    """One finished measurement. settings: sizes and options it was made with; rows hold the raw times too."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    plot: Plot
    settings: Row

    def document(self, command: str) -> dict[str, Json]:
        """The report as JSON values."""
        facts = machine_facts()
        return {
            "schema": SCHEMA,
            "name": self.name,
            "title": self.title,
            "command": command,
            "machine": machine(facts),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "facts": facts,
            "settings": self.settings,
            "columns": [[c.key, c.heading, c.form] for c in self.columns],
            "rows": list(self.rows),
            "plot": {name: getattr(self.plot, name) for name in Plot.__slots__},
        }

    def write(self, out: Path, command: str) -> tuple[Path, Path]:
        """`name`.json in the folder `out`, and `name`.svg drawn from it. Raises OutputRefused."""
        from mccompile.studio.bench.plot import draw

        document = self.document(command)
        text, picture = out / f"{self.name}.json", out / f"{self.name}.svg"
        try:
            out.mkdir(parents=True, exist_ok=True)
            put(text, lambda path: path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8"))
            drawn = draw(json.loads(text.read_text(encoding="utf-8")))
            put(picture, lambda path: path.write_text(drawn, encoding="utf-8"))
        except OSError as error:
            raise OutputRefused(str(out), reason(error)) from None
        return text, picture


def cell(row: Row, column: Column) -> str:
    """One cell as text; a dash where the row has no value."""
    value = row.get(column.key)
    if value is None:
        return "-"
    return f"{value:{column.form}}" if column.form and isinstance(value, int | float) else str(value)


def machine_facts() -> dict[str, Json]:
    """CPU, cores, threads, torch, instruction set, load averages, accelerator."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cuda = torch.cuda.is_available()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def machine(facts: Row) -> str:
    """The facts in words, for below a table."""
    load = facts["load"]
    assert isinstance(load, Sequence)
    place = facts["gpu"] or f"{facts['cores']} cores of {facts['cpu']} ({facts['isa']}), {facts['threads']} thread(s)"
    return f"{place}, torch {facts['torch']}, load {load[0]}"
