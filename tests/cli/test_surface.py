"""The surface is frozen: an option that is added, renamed or dropped changes surface.txt, on purpose."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mccompile.cli.parser import VERBS, build_parser
from tests.cli.conftest import Shell

SURFACE = Path(__file__).parent / "surface.txt"


def surface() -> str:
    """Every option of every verb: its names, what it takes, its choices and default. No layout of argparse's."""
    lines = []
    for verb, parser in verbs().items():
        lines.append(verb)
        for action in parser._actions:
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            takes = f" {action.metavar or action.dest}" if action.option_strings and action.nargs != 0 else ""
            choices = f" {{{','.join(action.choices)}}}" if action.choices else ""
            default = "" if action.default in (None, argparse.SUPPRESS, False, []) else f" = {action.default}"
            many = f" ({action.nargs})" if action.nargs in ("+", "?") else ""
            need = " required" if action.required and action.option_strings else ""
            lines.append(f"  {names}{takes}{choices}{many}{default}{need}")
    return "\n".join(lines) + "\n"


def verbs() -> dict[str, argparse.ArgumentParser]:
    found = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_the_surface_is_frozen(update_golden: bool) -> None:
    if update_golden:
        SURFACE.write_text(surface())
    assert surface() == SURFACE.read_text()


def test_every_verb_helps(shell: Shell) -> None:
    assert len(VERBS) == len(verbs())
    for verb in verbs():
        result = shell(verb, "--help")
        assert result.status == 0
        assert result.out.startswith(f"usage: mccompile {verb}")


def test_every_verb_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert [v for v in verbs() if f"## mccompile {v}\n" not in page] == []


def test_version(shell: Shell) -> None:
    assert shell("--version").out == f"mccompile {version('mccompile')}\n"


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mccompile", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mccompile ")


@pytest.mark.parametrize(
    "words",
    [(), ("chek",), ("replay",), ("generate", "--set", "threshold"), ("generate", "--set", "threshold=0.2.1"),
     ("generate", "--steps", "0"), ("generate", "--out", ""),
     ("report", ""), ("generate", "--step", "3"), ("explain", "exact", "--stage", "asm")],
)  # fmt: skip
def test_usage_errors(words: tuple[str, ...], shell: Shell) -> None:
    result = shell(*words)
    assert result.status == 2
    assert result.err.startswith("usage: ")
    assert "Traceback" not in result.err


def test_policies_need_no_torch() -> None:
    """Checking, formatting and explaining start at once."""
    code = "import sys; from mccompile.cli import main; main(['explain', 'exact']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
