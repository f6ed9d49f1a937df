"""What `make gpu-check` reads of compiled graphs, and what it calls wrong. No CUDA is needed here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from mccompile.backend.record import Recorder, TensorSpec
from mccompile.backend.role import Role
from tests.backend import toy
from tests.device.cross.pretend import GPUS
from tests.device.cross.reading import Resources, read_resources, read_wrapper
from tests.device.cross.roles import Mover, devices
from tests.device.cross.verdict import document, problems
from tests.house.readme import table

WRAPPER = """
static void call_triton_poi_fused_add_0(const in_ptr0_type_& in_ptr0) { launchKernel(kernels_.triton_poi_fused_add_0); }
void AOTInductorModel::run_impl(AtenTensorHandle* input_handles) {
    if ((long(arg0_1.data_ptr()) & (16 -1)) != 0) {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_clone_preserve_strides(arg0_1, &arg0_1_aligned_handle));
    }
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(3, int_array_2, int_array_3, &buf3_handle));
    call_triton_poi_fused_add_0(arg0_1, buf3, s9, this->device_idx_, stream, kernels, this->cubin_dir_);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(buf4, arg9_1, buf3, arg8_1, 1L, 1L));
    call_prefix_rows_0(buf4, arg5_1, arg6_1, arg30_1, s50, this->device_idx_, stream, kernels, this->cubin_dir_);
    aoti_torch_cuda__scaled_dot_product_flash_attention(buf4, buf5, buf6, 0.0, 0, &buf20_handle);
    call_triton_poi_fused_add_0(buf4, buf5, s9, this->device_idx_, stream, kernels, this->cubin_dir_);
}
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function prefix_rows:
  REG:235 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function triton_per_fused_mul_1:
  REG:255 STACK:1416 SHARED:0 LOCAL:8 CONSTANT[0]:464 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_calls_of_a_wrapper_are_counted() -> None:
    found = read_wrapper(WRAPPER)
    assert found.kernels == {"triton_poi_fused_add_0": 2, "prefix_rows_0": 1}
    assert found.extern == {"addmm_out": 1, "scaled_dot_product_flash_attention": 1}
    assert (found.custom, found.copies, found.launches) == (0, 0, 5)  # a misaligned input alone is cloned


def test_copies_and_detours_are_seen() -> None:
    end = "    aoti_torch_copy_(arg5_1, buf7, 0);\n    aoti_torch_proxy_executor_call_function(proxy_executor, 0);\n}\n"
    found = read_wrapper(WRAPPER.rstrip().removesuffix("}") + end)
    assert (found.custom, found.copies) == (1, 1)


def test_registers_and_spills_are_read() -> None:
    assert read_resources(USAGE) == [
        Resources("prefix_rows", 235, 0), Resources("triton_per_fused_mul_1", 255, 1424),
    ]  # fmt: skip


@pytest.mark.parametrize("read", [read_wrapper, read_resources])
def test_what_is_neither_is_refused(read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="no "):
        read("int main() {}")


GOOD = {
    "graph": "block0:partial", "gpu": "sm_90", "kernels": 9, "extern": 9, "custom": 0, "copies": 0, "registers": 120,
    "spilled": 0, "by_rows": True, "operators": {"scaled_dot_product_flash_attention": 1}, "error": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"error": "AOTInductor: no headers"}, "AOTInductor: no headers"), ({"spilled": 8}, "8 bytes spilled"),
        ({"copies": 1}, "1 copies of buffers"), ({"custom": 2}, "2 operators go through Python"),
        ({"operators": {"scaled_dot_product_cudnn_attention": 1}}, "cuDNN attends to rows that a selection decides"),
        ({"shared": 200_000, "shared_most": 101_376}, "200000 bytes of shared memory, and the GPU has 101376"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change: dict[str, object], why: str) -> None:
    assert problems([GOOD]) == []
    assert problems([GOOD, {**GOOD, **change}]) == [f"sm_90, block0:partial: {why}"]
    assert problems([{**GOOD, "by_rows": False, "operators": {"scaled_dot_product_cudnn_attention": 1}}]) == []


def test_the_lines_become_a_table() -> None:
    shown = table(document([GOOD], "Graphs", "make gpu-check", "torch 2.13.0"))
    assert "| block0:partial | sm_90 | 9 | 9 | 120 | 0 | 0 |" in shown
    assert "no GPU, torch 2.13.0" in shown


def test_recordings_move_to_the_device_and_bounds_stay_on_the_host() -> None:
    recorder = Recorder()
    run = recorder(toy.module(), Role("rows"))
    run(*toy.call(5, 11, 3))
    (recording,) = recorder.recordings.values()
    with FakeTensorMode() as mode:
        moved = Mover(mode).recording(recording)
        again = Mover(mode).recording(replace(recording))
    kinds = [spec.device.type if isinstance(spec, TensorSpec) else None for spec in moved.calls[0]]
    assert kinds == ["cuda", None, None, "cuda", "cuda", "cpu"]
    assert devices({"one": moved}) == {"cuda", "cpu"}
    weight = moved.module.get_buffer("inner.weight")
    assert weight.device.type == "cuda"
    assert weight.shape == toy.module().inner.weight.shape
    assert [n.target for n in again.module.graph.nodes] == [n.target for n in recording.module.graph.nodes]


def test_gpus_are_named_by_their_architecture() -> None:
    assert {name: gpu.arch for name, gpu in GPUS.items()} == {"sm_90": "sm_90", "sm_89": "sm_89"}
    assert all(isinstance(gpu.capability, tuple) and gpu.shared > 2**16 for gpu in GPUS.values())
