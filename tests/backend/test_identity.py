"""What a bundle was made for is told apart from everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mccompile.backend.aot import LARGEST
from mccompile.backend.package import Contract, TensorInput
from mccompile.backend.package_errors import ForeignFile, NotCompiled, UnfitCall
from mccompile.backend.records import read_record, write_record
from mccompile.backend.role import Role
from mccompile.bundles import identity
from mccompile.bundles.bundle_errors import (
    AlteredBundle,
    ForeignBundle,
    NewerBundle,
    OlderBundle,
    SeveralTransformers,
    UnbundledRole,
    UnreadableBundle,
    WrongModel,
)
from mccompile.bundles.identity import WeightFile, environment, identify

PAGES = Path(__file__).parents[2] / "docs" / "errors"


class Model(nn.Module):
    def __init__(self, width: int = 4, **config: object) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.config = {"width": width, "_name_or_path": "anywhere", **config}


def folder(path: Path, **tensors: torch.Tensor) -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors or {"layer.weight": torch.ones(4, 4)}, path / "model.safetensors")
    return path


def test_the_same_model_is_the_same(tmp_path: Path) -> None:
    one = identify(Model(), "a", folder(tmp_path / "one"))
    two = identify(Model(_name_or_path="b"), "a", folder(tmp_path / "two"))
    assert one.differences(two) == []


def test_every_difference_is_named(tmp_path: Path) -> None:
    one = identify(Model(), "a", folder(tmp_path / "one"))
    other = folder(tmp_path / "two", w=torch.zeros(4, 4))
    assert one.differences(identify(Model(), "a", other)) == ["model.safetensors has other content"]
    (other / "model.safetensors").rename(other / "more.safetensors")
    assert one.differences(identify(Model(), "a", other)) == [
        "model.safetensors is missing", "more.safetensors is additional",
    ]  # fmt: skip
    differences = one.differences(identify(Model(8).half(), "a"))
    assert differences == [
        "its weights are float16, not float32", "the shapes of its weights differ", "its configuration differs",
    ]  # fmt: skip


def test_large_files_are_told_apart_by_header_size_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "SAMPLE", 100)
    monkeypatch.setattr(identity, "SAMPLES", 8)
    files: list[WeightFile] = []
    for value in (1.0, 1.0, 2.0):
        path = folder(tmp_path / "x", w=torch.full((40, 40), value))
        files += identify(Model(), "", path).weights
    assert files[0] == files[1] != files[2]
    assert files[0].header == files[2].header


def test_another_environment_is_named() -> None:
    here = environment("cpu")
    assert here.differences(here) == []
    there = replace(here, torch="1.0", cpu=(*here.cpu, "avx1024"))
    assert there.differences(here) == [
        ("torch", "1.0", here.torch), ("CPU instructions", "avx1024", "not available"),
    ]  # fmt: skip
    assert replace(here, cpu=()).differences(here) == []  # a CPU that can do more is fine


def test_records_survive() -> None:
    spec = TensorInput(("s0", 4), torch.bfloat16, "cpu", (1, 0), True)
    weights, ranges = (("w", spec),), (("s0", 2, LARGEST),)
    contract = Contract(Role("decide"), ((0, spec),), ((1, True), (2, 0.5), (3, None)), weights, ranges)
    for value in (contract, environment("cpu")):
        assert read_record(type(value), json.loads(json.dumps(write_record(value)))) == value
    with pytest.raises(ValueError, match="is no"):
        read_record(Contract, {"role": "r"})
    with pytest.raises(TypeError, match="JSON"):
        write_record(object())


B = Path("motion.mcc")
SHOWN = (
    UnfitCall(Role("rows"), "argument 0", "float32 [1, 512, 256] on cpu", "float32 [2, 512, 256] on cpu"),
    ForeignFile(Path("/tmp/torchinductor_ada/mccompile"), "belongs to user 1001, and this process runs as 1000"),
    NotCompiled(Role("block"), "Unsupported: data-dependent branching"),
    UnreadableBundle(B, "file is not a zip file; it may be cut off"),
    AlteredBundle(B, "captured.json", "is not what was written"),
    NewerBundle(B, 2, 1),
    OlderBundle(B, 2, 3),
    ForeignBundle(
        B, [("torch", "2.12.0", "2.13.0+cpu"), ("CPU instructions", "amx_tile avx512f", "not available")]
    ),
    SeveralTransformers("WanPipeline", ("transformer", "transformer_2")),
    WrongModel(B, "/models/skyreels/transformer", ["diffusion_pytorch_model.safetensors has other content"]),
    UnbundledRole(
        Role("block"), "AOTInductor refused it (torch.export: UserError), and torch.compile keeps no file"
    ),
)


@pytest.mark.parametrize("error", SHOWN, ids=lambda error: error.code)
def test_a_page_shows_its_error_as_it_is_printed(error: Exception) -> None:
    page = (PAGES / f"{error.code}.md").read_text()  # type: ignore[attr-defined]
    assert f"```text\n{error}\n```" in page
    assert page.index("## Refused") < page.index("```text") < page.index("## Mended")


def test_all_pages_of_packages_and_bundles_are_compared() -> None:
    assert {path.stem for path in PAGES.glob("MC08*.md")} == {error.code for error in SHOWN}
