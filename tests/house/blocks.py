"""Fenced blocks of Markdown pages, and what it means to run them.

```console     each line after `$ ` runs in bash in the page's own folder, where policies/ and tests/ of the repository
               are, and must succeed; the lines below it are its output, compared unless there are none; `...` stands
               for any text, alone on a line for any lines
```python      runs in one namespace per page; what it prints is compared with a block `output` that follows it
```policy      is parsed and checked; with a file name (```policy mine.policy) it is also written to the page's folder;
               with the word `refused` after the name, the check must fail
Other languages (sh, text, json, ...) are text.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.house.served import ask
from tests.house.tree import DOCS, ROOT

RUN = ("console", "python", "policy")
PROGRESS = re.compile(r"^\[ *\d+\.\d s\] .*\n", re.MULTILINE)  # what a command is doing, of no interest in a page
SECONDS = 1200.0  # against hanging for ever; nothing is measured
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```\s*$", re.DOTALL | re.MULTILINE)

@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: language, the words after it, its text and the line where it begins."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


class PageError(AssertionError):
    """A page that does not do what it says; the message names the page, the line and both texts."""


def pages() -> tuple[Path, ...]:
    """README.md, CONTRIBUTING.md and docs/ but the error pages that the tests of their parts run."""
    inside = (path for path in DOCS.rglob("*.md") if not re.match(r"MC0[12348]", path.name))
    return (ROOT / "README.md", *sorted(inside), ROOT / "CONTRIBUTING.md")


def blocks(text: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(Block(language, tuple(words), match["text"], text.count("\n", 0, match.start()) + 1))
    return tuple(found)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, expected output) of a console block; a trailing backslash continues a command."""
    command, output = "", ""
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], ""
        elif command.endswith("\\") and not output:
            command += "\n" + line
        else:
            output += line + "\n"
    if command:
        yield command, output


def matches(expected: str, actual: str) -> bool:
    """Whether an output is what the page shows; trailing blanks do not count."""
    lines = [line.rstrip() for line in expected.strip("\n").splitlines()]
    pattern = "\n".join("@any@" if line.strip() == "..." else re.escape(line) for line in lines)
    pattern = pattern.replace(re.escape("..."), ".*?")
    pattern = re.sub(r"^@any@\n", r"(?:.*\n)*?", pattern, flags=re.MULTILINE).replace("\n@any@", r"(?:\n.*)*")
    shown = "\n".join(line.rstrip() for line in actual.strip("\n").splitlines())
    return re.fullmatch(pattern, shown) is not None


class Shell:
    """Runs the blocks of one page in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("policies", "tests"):
            (folder / name).symlink_to(ROOT / name)
        self.environment = {**os.environ, "PATH": f"{_commands()}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
        self._python: socket.socket | None = None

    def console(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, PROGRESS.sub("", done.stdout)

    def python(self, source: str) -> tuple[str, str]:
        """(what was printed, the traceback or nothing)."""
        if self._python is None:
            request = {"folder": str(self.folder), "environment": self.environment}
            self._python = ask(str(_commands() / "socket"), request, [])
            self._lines = self._python.makefile("rw")
        self._lines.write(json.dumps(source) + "\n")
        self._lines.flush()
        printed, failed = json.loads(self._lines.readline() or '["", "the interpreter died"]')
        return printed, failed

    def close(self) -> None:
        if self._python is not None:
            self._lines.close()
            self._python.close()


@cache
def _commands() -> Path:
    """A folder with `mccompile`, which runs at a server of this process (served.py), and with its interpreter."""
    folder = Path(tempfile.mkdtemp(prefix="mccompile-pages-"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    path = folder / "socket"
    server = subprocess.Popen([sys.executable, "-m", "tests.house.served", str(path)], env=environment)
    atexit.register(lambda: (server.kill(), server.wait(), shutil.rmtree(folder)))
    script = f"#!/bin/sh\nexec {sys.executable} -S {ROOT / 'tests/house/served.py'} {path} \"$@\"\n"
    (folder / "mccompile").write_text(script)
    (folder / "mccompile").chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    while not path.exists():
        if server.poll() is not None:
            raise RuntimeError(f"the server of the pages ended with {server.returncode}")
        time.sleep(0.05)
    return folder


def run_page(text: str, name: str, shell: Shell) -> int:
    """Runs every block of a page in order and returns how many it ran. Raises PageError."""
    found = blocks(text)
    ran = 0
    for block, following in zip(found, (*found[1:], None), strict=True):
        place = f"{name}:{block.line}"
        match block.language:
            case "console":
                _run_console(block, place, shell)
            case "python":
                printed, failed = shell.python(block.text)
                expected = following.text if following is not None and following.language == "output" else None
                if failed or (expected is not None and not matches(expected, printed)):
                    raise PageError(f"{place}: expected\n{expected or ''}\nbut got\n{printed}{failed}")
            case "policy":
                _run_policy(block, place, shell)
        ran += block.language in RUN
    return ran


def _run_console(block: Block, place: str, shell: Shell) -> None:
    for command, expected in commands(block.text):
        status, output = shell.console(command)
        if status != 0 or (expected.strip() and not matches(expected, output)):
            raise PageError(f"{place}: $ {command}\nexpected\n{expected}\nbut got (exit {status})\n{output}")


def _run_policy(block: Block, place: str, shell: Shell) -> None:
    name = block.words[0] if block.words else "page.policy"
    path = shell.folder / name
    path.write_text(block.text)
    status, output = shell.console(f"mccompile check {name}")
    if (status != 0) is not ("refused" in block.words):
        raise PageError(f"{place}: the policy is {'refused' if status else 'accepted'}\n{output}")
    if not block.words:
        path.unlink()
