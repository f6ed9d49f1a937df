"""A compiled package computes what its graph computes, writes its buffers, and takes no call that does not fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mccompile.backend.aot import CannotCompile, compile_program, export_role
from mccompile.backend.compiled_roles import CompiledRole, CompiledRoles, packaged
from mccompile.backend.graph_text import fingerprint
from mccompile.backend.package import ALIGNMENT, Contract, Package, TensorInput, evaluate_size
from mccompile.backend.package_errors import UnfitCall
from mccompile.backend.role import Role
from mccompile.capture.own import own_weights, point_at
from tests.backend import toy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledRole:
    """The toy role, compiled once."""
    path = tmp_path_factory.mktemp("package") / "toy.pt2"
    recording = toy.recording()
    program, contract = export_role(recording)
    compile_program(program, path, headers=False)
    return CompiledRole(toy.ROLE, "package", "", recording.tensors, path, contract)


@pytest.fixture
def run(compiled: CompiledRole) -> Callable[..., tuple[object, ...]]:
    return packaged(toy.module(), compiled)


def test_it_computes_what_the_graph_computes_at_sizes_never_seen(run: Callable[..., tuple[object, ...]]) -> None:
    reference = toy.module()
    for n, length, count, groups in ((5, 11, 3, 1), (2, 40, 5, 2), (31, 32, 6, 3), (40, 40, 7, 1)):
        here, there = toy.call(n, length, count, groups), toy.call(n, length, count, groups)
        expected = reference(*there)
        rows, total, number = run(*here)
        weight = toy.module().inner.weight
        assert weight.dtype == torch.float32
        torch.testing.assert_close((rows, total), expected[:2], rtol=1e-6, atol=1e-4)
        assert number == expected[2] == count + n
        torch.testing.assert_close(here[3], there[3], rtol=1e-6, atol=1e-4)


def test_an_input_in_another_layout_is_brought_into_order(run: Callable[..., tuple[object, ...]]) -> None:
    plain, turned = toy.call(6, 20, 3), list(toy.call(6, 20, 3))
    turned[0] = turned[0].t().contiguous().t()  # type: ignore[attr-defined]
    assert torch.equal(run(*plain)[0], run(*turned)[0])  # type: ignore[arg-type]


BAD = {
    "another dtype": (0, lambda x: x.double(), "float32"),
    "another fixed size": (0, lambda x: x[:, :7], r"\[\w+, 8\]|\[6, 8\]"),
    "another rank": (0, lambda x: x[None], "shape"),
    "a number for a tensor": (0, lambda x: 3, "3"),
    "another constant": (1, lambda x: 3, "2, but is 3"),
    "a tensor for a constant": (1, lambda x: torch.tensor(2), "argument 1"),
    "sizes that do not go together": (4, lambda x: x[:5], "size"),
    "a buffer that is no buffer": (3, lambda x: torch.ones(8, 20).t(), "written in place"),
    "another device": (4, lambda x: x.to("meta"), "meta"),
}


@pytest.mark.parametrize(("place", "change", "message"), BAD.values(), ids=BAD)
def test_a_call_that_does_not_fit_is_refused(
    run: Callable[..., tuple[object, ...]], place: int, change: Callable[[object], object], message: str
) -> None:
    arguments = list(toy.call(6, 20, 3))
    arguments[place] = change(arguments[place])
    with pytest.raises(UnfitCall, match=message) as caught:
        run(*arguments)
    assert caught.value.code == "MC0801"
    assert f"argument {place}" in str(caught.value) or place == 4


def test_one_row_is_refused_for_it_was_compiled_for_two_or_more(run: Callable[..., tuple[object, ...]]) -> None:
    with pytest.raises(UnfitCall, match="2 to"):
        run(*toy.call(1, 20, 3))


def test_weights_that_do_not_fit_are_refused_at_once(compiled: CompiledRole) -> None:
    other = toy.module()
    other.inner.weight = torch.nn.Parameter(torch.zeros(8, 9))
    with pytest.raises(UnfitCall, match=r"weight `inner.weight`"):
        packaged(other, compiled)


def test_a_package_follows_where_the_graph_has_its_weights(compiled: CompiledRole) -> None:
    module, arguments = toy.module(), toy.call(6, 20, 3)
    own_weights(module)
    package = packaged(module, compiled)
    before = package(*arguments)[0]
    point_at(module.inner.weight, module.inner.weight * 2)  # type: ignore[union-attr, arg-type]
    found, wanted = package(*arguments)[0], module.forward(*arguments)[0]
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, before)  # type: ignore[arg-type]


def test_a_new_process_runs_it(compiled: CompiledRole, tmp_path: Path) -> None:
    program = """
import sys, torch, pickle
from pathlib import Path
from mccompile.backend.compiled_roles import CompiledRole, packaged
from mccompile.backend.records import read_record
import json
from mccompile.backend.package import Contract
from tests.backend import toy
torch.set_num_threads(1)
contract = read_record(Contract, json.loads(Path(sys.argv[2]).read_text()))
role = CompiledRole(toy.ROLE, "package", "", (True, True, False), Path(sys.argv[1]), contract)
rows, total, number = packaged(toy.module(), role)(*toy.call(6, 20, 3))
torch.save((rows, total), sys.argv[3])
"""
    import json

    from mccompile.backend.records import write_record

    assert compiled.package is not None
    (tmp_path / "contract.json").write_text(json.dumps(write_record(compiled.contract)))
    out = tmp_path / "out.pt"
    subprocess.run(
        [sys.executable, "-c", program, str(compiled.package), str(tmp_path / "contract.json"), str(out)],
        check=True, cwd=Path(__file__).parents[2], capture_output=True,
    )  # fmt: skip
    here = packaged(toy.module(), compiled)(*toy.call(6, 20, 3))
    there = torch.load(out)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=False))  # type: ignore[arg-type]


def test_a_backend_hands_out_by_graph_and_says_what_it_does_not_know(compiled: CompiledRole) -> None:
    module = toy.module()
    backend = CompiledRoles({(toy.ROLE, fingerprint(module)): compiled})
    backend(module, toy.ROLE)
    assert backend.refusals == ()
    backend(module, Role("gather"))
    assert [(r.site, "no call" in r.reason) for r in backend.refusals] == [("graph gather", True)]
    assert backend.compiled_count == 0


def test_an_attribute_that_is_no_tensor_is_a_reason() -> None:
    recording = toy.recording()
    recording.module.inner.weight = None
    with pytest.raises(CannotCompile, match=r"inner.weight"):
        export_role(recording)


def test_a_contract_names_what_may_vary(compiled: CompiledRole) -> None:
    assert isinstance(compiled.contract, Contract)
    inputs = dict(compiled.contract.inputs)
    assert isinstance(inputs[0].sizes[0], str)
    assert inputs[0].sizes[1] == 8
    assert inputs[2].shape_only
    assert [place for place, spec in inputs.items() if spec.written] == [3]
    assert compiled.contract.constants == ((1, 2),)
    assert [name for name, _ in compiled.contract.weights] == ["inner.weight"]


@pytest.mark.parametrize(
    ("text", "value"), [("s0*s1", 12), ("2*s0 - 1", 5), ("(s0 + s1)//2", 3), ("s2", None), ("Max(2, s0)", None)]
)
def test_sizes_are_arithmetic_or_unknown(text: str, value: int | None) -> None:
    assert evaluate_size(text, {"s0": 3, "s1": 4}) == value


def test_a_buffer_that_is_not_aligned_is_written_all_the_same(compiled: CompiledRole) -> None:
    """As one sample of several has it, whose rows are an odd number of bytes; on a GPU kernels load vectors."""
    assert compiled.package is not None
    assert compiled.contract is not None
    weights = [toy.module().get_parameter(name) for name, _ in compiled.contract.weights]
    package = Package(compiled.package, compiled.contract, weights)
    package._on_gpu = True
    here, there = toy.call(5, 11, 3), list(toy.call(5, 11, 3))
    place = next(i for i, spec in compiled.contract.inputs if spec.written)
    buffer = there[place]
    assert isinstance(buffer, torch.Tensor)
    odd = torch.empty(buffer.numel() + 1)[1:].view(buffer.shape).copy_(buffer)
    assert odd.data_ptr() % ALIGNMENT
    there[place] = odd
    for found, wanted in zip(package(*there), package(*here), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(odd, here[place])  # type: ignore[arg-type]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices for which packages are loaded, in place of loading them."""
    indices: list[int] = []
    loader = SimpleNamespace(AOTIModelPackageLoader=lambda path, name, single, count, index: indices.append(index))
    monkeypatch.setattr(torch._C, "_aoti", loader)
    return indices


def test_a_package_is_loaded_on_the_device_of_its_tensors(loaded: list[int]) -> None:
    """And not on the current one."""
    spec = TensorInput((2,), torch.float32, "cuda", (0,), False)
    with FakeTensorMode():
        first, second = (torch.empty(2, device=f"cuda:{i}") for i in range(2))
    Package(Path("none.pt2"), Contract(Role("decide"), ((0, spec),), (), (("w", spec),), ()), [second])
    assert loaded == [1]
    without = Package(Path("none.pt2"), Contract(Role("decide"), ((0, spec),), (), (), ()), [])
    assert loaded == [1]
    assert without._device((first,)) == torch.device("cuda:0")
    without._loader(first.device)
    without._loader(first.device)
    assert loaded == [1, 0]


def test_tensors_of_two_gpus_do_not_meet(loaded: list[int]) -> None:
    spec = TensorInput((2,), torch.float32, "cuda", (0,), False)
    with FakeTensorMode():
        first, second = (torch.empty(2, device=f"cuda:{i}") for i in range(2))
    package = Package(Path("none.pt2"), Contract(Role("decide"), ((0, spec),), (), (("w", spec),), ()), [second])
    with pytest.raises(UnfitCall, match="cuda:0 and cuda:1"):
        package._device((first,))
