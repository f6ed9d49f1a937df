"""`mccompile doctor` and `mccompile validate`: what they say of a model, and of a policy on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Shell

MODULE = '''
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, shift):
        q, k, v = self.qkv(x + shift).chunk(3, dim=-1)
        return x + F.scaled_dot_product_attention(q, k, v)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv3d(2, 8, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, hidden_states, timestep):
        x = self.patch(hidden_states).flatten(2).transpose(1, 2)
        BRANCH
        for block in self.blocks:
            x = block(x, timestep[:, None, None] * 0.001)
        return x

def call(*size):
    return {"hidden_states": torch.randn(1, 2, *size), "timestep": torch.tensor([500.0])}

def make():
    return Model(), call(4, 4, 6), call(6, 6, 10)

def other():
    return Model()
'''


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE.replace("BRANCH", ""))
    return path


def test_a_module_of_ones_own_is_examined(shell: Shell, module: Path) -> None:
    found = shell("doctor", "--module", f"{module}:make")
    assert found.status == 0
    lines = [line.split(maxsplit=1) for line in found.out.splitlines() if line]
    said = dict(line for line in lines if len(line) == 2)
    assert said["captured"] == "whole"
    assert said["path"] == "inputs -> prelude -> blocks[0..1] -> postlude -> output"
    assert said["grid"] == "axes 2, 3, 4 of hidden_states, patches of 1 x 2 x 2"
    assert said["rows"] == "any tokens of every block"
    assert said["top_motion"] == "token"
    assert said["teacache"] == "step"
    assert said["compute"].startswith("-")


def test_blocks_alone_are_told_with_what_it_means_for_each_policy(shell: Shell, module: Path) -> None:
    module.write_text(MODULE.replace("BRANCH", "x = x * 2 if float(x.max()) > 99 else x"))
    found = shell("doctor", "--module", f"{module}:make")
    assert found.status == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in found.out.splitlines() if line}
    assert lines["captured"] == "its blocks alone"
    assert lines["top_motion"].startswith("computes all")
    assert lines["fixed_interval"] == "step"
    assert lines["teacache"].startswith("refused")
    assert "the model cannot be exported" in lines["refused"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--module", "nowhere.py:make"), "it names no function of a Python file"),
        (("--module", "HERE:nothing"), "KeyError: 'nothing'"),
        (("--module", "HERE:other"), "it returned Model"),
        ((), "give either a MODEL or --module"),
    ],
)
def test_what_cannot_be_examined_is_refused(shell: Shell, module: Path, asked: tuple[str, ...], says: str) -> None:
    found = shell("doctor", *(text.replace("HERE", str(module)) for text in asked))
    assert found.status == 2
    assert says in found.err


def test_the_laws_of_a_policy_are_tried_on_a_module(shell: Shell, module: Path) -> None:
    found = shell("validate", "--module", f"{module}:make", "top_motion", "--steps", "3")
    assert found.status == 0, found.out
    lines = {line.split()[0]: line.split()[1] for line in found.out.splitlines()[1:10]}
    assert lines.pop("rows") == "holds"
    assert set(lines.values()) == {"holds"}
    assert "bound of whole runs" in found.out


def test_validate_needs_one_model(shell: Shell) -> None:
    assert "give either a MODEL or --module" in shell("validate", "top_motion").err
    assert shell("validate", "--module", "nowhere.py:make", "top_motion", "--dtype", "bfloat16").status == 2
