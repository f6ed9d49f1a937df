"""Mutants of what an import executes: each runs in a child of a process that has not imported the product."""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType

import pytest

from tests.mutation.children import Failing, Outcome, Quick, forked, options
from tests.mutation.codes import ROOT, compiled
from tests.mutation.operators import Mutant

FILES = 12
"""How many files of tests such a child collects: that takes longer than most tests."""


def import_others() -> None:
    """Imports what the tests need beside the product. It takes seconds."""
    import torch
    from diffusers import WanPipeline, WanTransformer3DModel

    assert torch
    assert WanPipeline
    assert WanTransformer3DModel


class Wrong(MetaPathFinder, SourceFileLoader):
    """Imports one module from its mutant."""

    def __init__(self, mutant: Mutant) -> None:
        module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(module, str(ROOT / mutant.file))
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compiled(self._mutant)


def alone(mutant: Mutant | None, names: list[str]) -> Outcome:
    """The verdict of a child that imports the wrong module, if it is told one."""
    with tempfile.TemporaryDirectory() as place:

        def work(write: int) -> int:
            os.chdir(ROOT)
            if mutant is not None:
                sys.meta_path.insert(0, Wrong(mutant))
            return int(pytest.main([*options(place), *names], plugins=[Failing(write, {}), Quick()]))

        return forked(work)


def few_files(names: list[str]) -> list[str]:
    """Those of the first few files."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))[:FILES]
    return [name for name in names if name.partition("::")[0] in files]
