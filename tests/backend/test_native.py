"""The CPU's own attention over prefixes: right in double precision, without spills, run only where it is faster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._inductor import config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.nn import functional as nnf

from mccompile.backend import native
from mccompile.backend.native import choice, use_native
from mccompile.backend.native.choice import KEYS, LARGEST, MEASURED_AT, QUERIES, TimingTable, table_for
from mccompile.backend.native.kernel import FLAGS, INSTRUCTIONS, SOURCE, attend_natively, covers, kernel

OP = torch.ops.mccompile.prefix_attention_native
needs_kernel = pytest.mark.skipif(kernel() is None, reason="no AVX2, or no C++ compiler")


def oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(q.size(2), k.size(2), dtype=torch.bool)
    for first, end, stop in bounds.tolist():
        mask[first:end, :stop] = True
    grouped = q.size(1) != k.size(1)
    double = nnf.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), attn_mask=mask, enable_gqa=grouped
    )
    return double.float()


def token_major(samples: int, heads: int, rows: int, dim: int) -> torch.Tensor:
    """[B, H, n, D] as blocks hold it: a view of [B, n, H, D]."""
    return torch.randn(samples, rows, heads, dim).transpose(1, 2)


def by_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    out = torch.empty_like(q)
    attend_natively(q, k, v, bounds, scale, out)
    return out


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 70), min_size=1, max_size=4), tokens=st.integers(1, 150),
    dim=st.sampled_from([16, 32, 48, 64, 96, 128, 256]), heads=st.sampled_from([(1, 1), (3, 3), (4, 2)]),
    samples=st.integers(1, 2), loud=st.booleans(),
)  # fmt: skip
def test_equals_masked_attention(
    counts: list[int], tokens: int, dim: int, heads: tuple[int, int], samples: int, loud: bool
) -> None:
    torch.manual_seed(0)
    ends = torch.tensor(counts).cumsum(0)
    stops = (torch.arange(len(counts)) + 1) * tokens
    bounds = torch.stack((ends - torch.tensor(counts), ends, stops), 1)
    q = token_major(samples, heads[0], sum(counts), dim) * (100.0 if loud else 1.0)  # loud: one key takes all
    k, v = (token_major(samples, heads[1], len(counts) * tokens, dim) for _ in range(2))
    assert covers(q, k, v)
    tolerance = 1e-3 if loud else 2e-5  # scores of some hundreds are float32 numbers 3e-5 apart
    torch.testing.assert_close(by_kernel(q, k, v, bounds), oracle(q, k, v, bounds), rtol=1e-4, atol=tolerance)


@needs_kernel
def test_rows_in_a_plain_layout_and_a_scale_of_its_own() -> None:
    q, k, v = (torch.randn(2, 3, n, 64) for n in (5, 40, 40))
    bounds = torch.tensor([[0, 2, 17], [2, 5, 40]])
    wanted = by_kernel(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)), bounds, 0.3)
    torch.testing.assert_close(by_kernel(q, k, v, bounds, 0.3), wanted, rtol=0, atol=0)
    torch.testing.assert_close(wanted, oracle(q * 0.3 * 8.0, k, v, bounds), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("dim", "dtype"), [(24, torch.float32), (272, torch.float32), (64, torch.bfloat16)])
def test_what_the_kernel_does_not_cover_runs_on_torch(dim: int, dtype: torch.dtype) -> None:
    q, k, v = (token_major(1, 2, n, dim).to(dtype) for n in (4, 12, 12))
    bounds = torch.tensor([[0, 1, 6], [1, 4, 12]])
    assert not covers(q, k, v)
    seen = torch.tensor([6, 12, 12, 12], dtype=torch.int32)
    assert torch.equal(OP(q, k, v, bounds), torch.ops.mccompile.prefix_attention(q, k, v, bounds, seen))


POINTS = sum((q + 1) * k <= LARGEST for q in QUERIES for k in MEASURED_AT)
TORCH, OWN = 1.0, 0.5  # seconds of a class in which the kernel is faster


def table(faster_from: int) -> TimingTable:
    """The kernel is faster from so many queries on, whatever the keys."""
    own = tuple((OWN if q >= faster_from else 2 * TORCH,) * len(KEYS) for q in QUERIES)
    return TimingTable(64, 1, ((TORCH,) * len(KEYS),) * len(QUERIES), own)


@needs_kernel
@pytest.mark.parametrize(("faster_from", "by_own"), [(16, [40]), (1, [12, 40]), (10**6, [])])
def test_each_group_goes_to_what_was_faster_for_its_class(
    monkeypatch: pytest.MonkeyPatch, faster_from: int, by_own: list[int]
) -> None:
    seen: list[int] = []

    def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, *more: object) -> None:
        seen.extend((bounds[:, 1] - bounds[:, 0]).tolist())
        attend_natively(q, k, v, bounds, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "table_for", lambda width, threads: table(faster_from))
    monkeypatch.setattr(native, "attend_natively", note)
    q, k, v = (token_major(2, 3, n, 64) for n in (55, 300, 300))
    bounds = torch.tensor([[0, 12, 100], [12, 15, 290], [15, 55, 300]])
    torch.testing.assert_close(OP(q, k, v, bounds), oracle(q, k, v, bounds), rtol=1e-4, atol=2e-5)
    assert sorted(seen) == by_own


def test_a_class_begins_at_its_fewest_and_asks_for_a_margin() -> None:
    assert not table(16).own_is_faster(15, 1)
    assert table(16).own_is_faster(16, 10**6)
    assert not table(1).own_is_faster(7, 10**6)  # too few to fill a vector
    assert table(1).own_is_faster(8, 1)
    near = TimingTable(64, 1, table(1).torch_seconds, ((TORCH / 1.01,) * len(KEYS),) * len(QUERIES))
    assert not near.own_is_faster(100, 100)  # within the noise


@pytest.mark.parametrize(("own", "rounds"), [(0.002, 5), (0.0039, 26), (0.0041, 25), (0.01, 5)])
def test_times_near_each_other_are_taken_for_longer(
    monkeypatch: pytest.MonkeyPatch, own: float, rounds: int
) -> None:
    now, called = [0.0], list[str]()

    def run(name: str, seconds: float) -> None:
        now[0] += seconds
        called.append(name)

    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])
    ways = (lambda: run("torch", 0.004), lambda: run("own", own))
    assert choice._least(ways, 5) == pytest.approx((0.004, own))
    assert called == ["torch", "own"] * (1 + rounds)  # one untimed round of each


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, int, int]]]:
    """A cache folder of its own, and made-up times; the points that are timed."""
    points: list[tuple[int, int, int, int]] = []

    def seconds(queries: int, keys: int, width: int, heads: int) -> tuple[float, float]:
        points.append((queries, keys, width, heads))
        return TORCH, OWN

    monkeypatch.setattr("mccompile.backend.measured.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "seconds", seconds)
    table_for.cache_clear()
    yield points
    table_for.cache_clear()


@needs_kernel
def test_a_machine_is_measured_once(measured: list[tuple[int, int, int, int]], tmp_path: Path) -> None:
    found = table_for(64, 2)
    assert len(measured) == POINTS
    assert {p[2:] for p in measured} == {(64, 2)}
    table_for.cache_clear()  # as another process
    assert table_for(64, 2) == found
    assert len(measured) == POINTS
    table_for(128, 2)
    assert len(measured) == 2 * POINTS
    assert all(q % 8 == 1 for q, *_ in measured)  # where vectors are filled least
    assert max(q * k for q, k, *_ in measured) <= LARGEST
    assert len(list(tmp_path.iterdir())) == 2


def test_a_class_that_takes_too_long_to_time_is_as_the_one_with_fewer_queries(
    measured: list[tuple[int, int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "seconds", lambda queries, keys, width, heads: (float(queries), float(keys)))
    found = choice.measure(64, 1)
    assert found.whole
    assert [row[0] for row in found.torch_seconds] == [float(q + 1) for q in QUERIES]
    timed = [q + 1 for q in QUERIES if (q + 1) * MEASURED_AT[-1] <= LARGEST]
    assert found.torch_seconds[-1][-1] == float(timed[-1])
    assert (timed[-1], found.own_seconds[-1][-1]) == (1025, float(MEASURED_AT[-1]))


@needs_kernel
@pytest.mark.parametrize("text", ["{", "[]", '{"width": 64}', None])
def test_a_damaged_table_is_measured_again(
    measured: list[tuple[int, int, int, int]], tmp_path: Path, text: str | None
) -> None:
    found = table_for(64, 1)
    (file,) = tmp_path.iterdir()
    short = json.loads(file.read_text()) | {"own_seconds": [[1.0]]}
    file.write_text(json.dumps(short) if text is None else text)
    table_for.cache_clear()
    assert table_for(64, 1) == found
    assert len(measured) == 2 * POINTS


@needs_kernel
def test_the_choice_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = choice._facts(64, 1)
    assert choice._facts(64, 2) != before
    monkeypatch.setattr("mccompile.backend.measured.cpu_model", lambda: "another CPU")
    assert choice._facts(64, 1) != before


@needs_kernel
def test_torchs_switch_keeps_nothing(measured: list[tuple[int, int, int, int]], tmp_path: Path) -> None:
    with config.patch({"force_disable_caches": True}):
        assert table_for(64, 1) is not None
    assert list(tmp_path.iterdir()) == []


def test_only_graphs_on_the_cpu_are_rewritten() -> None:
    graph = fx.Graph()
    inputs = [graph.placeholder(n) for n in ("q", "k", "v", "bounds", "seen")]
    node = graph.call_function(torch.ops.mccompile.prefix_attention.default, tuple(inputs))
    graph.output((node,))
    use_native(graph, torch.device("cuda"))
    assert node.target is torch.ops.mccompile.prefix_attention.default
    use_native(graph, torch.device("cpu"))
    assert (node.target is OP.default) == (kernel() is not None)


def test_other_cpus_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    kernel.cache_clear()
    try:
        assert kernel() is None
    finally:
        kernel.cache_clear()


TARGETS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma", "-mprefer-vector-width=512")}


@pytest.mark.skipif(kernel() is None, reason="no C++ compiler for x86")
@pytest.mark.parametrize("instructions", sorted(INSTRUCTIONS))
def test_tiles_stay_in_registers(instructions: str, tmp_path: Path) -> None:
    """Reads the assembler of the tiles, which are functions of their own: no vector of theirs goes to the stack."""
    made = tmp_path / "kernel.s"
    flags = [f for f in FLAGS if f != "-shared"]
    command = [get_cpp_compiler(), *flags, *TARGETS[instructions], "-S", str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    tiles: dict[str, list[str]] = {}
    name = ""
    for line in made.read_text().splitlines():
        label = re.match(r"([A-Za-z_][\w.]*):", line)
        name = label[1] if label else name
        if re.search("(score|gather)_rows", name):
            tiles.setdefault(name, []).append(line)
    widest = "zmm" if instructions == "AVX512" else "ymm"
    assert sum("vfmadd" in line and widest in line for lines in tiles.values() for line in lines) > 300
    spilled = [(n, x) for n, lines in tiles.items() for x in lines if re.search(r"\(%r[sb]p", x) and "mm" in x]
    assert spilled == []
    # A product that reads its own row of queries or values from memory halves the speed of AVX2.
    products = [(n, x) for n, lines in tiles.items() for x in lines if "vfmadd" in x]
    assert [at for at in products if "(%" in at[1] and "{1to" not in at[1]] == []


def test_the_source_travels_with_the_package() -> None:
    assert SOURCE.is_file()
