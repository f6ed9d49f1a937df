"""Steps at exact shares, the integrated run, overhead and scaling: structure and arithmetic, never a time."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import pytest
import torch

from mccompile.backend.record import Recorder, TensorSpec
from mccompile.backend.role import Role
from mccompile.policy.bind import bind
from mccompile.runtime.exercise import record_roles
from mccompile.studio.bench import compile_case, compile_time, ladder_run, ladder_steps, overhead, scaling
from mccompile.studio.bench.ladder_steps import Conditions
from mccompile.studio.bench.report import Report, Row
from mccompile.studio.bench.rig import POLICIES, lowered_for
from mccompile.studio.bench.subjects import REAL, TINY

SHARES = (0.1, 0.5, 1.0)


@pytest.fixture(scope="session")
def steps(eager: Conditions) -> Report:
    return ladder_steps.report(TINY, SHARES, eager, "ladder_steps")


def by_name(rows: tuple[Row, ...]) -> dict[str, Row]:
    return {str(row["name"]): row for row in rows}


def test_shares_are_exact_and_work_follows_them(steps: Report) -> None:
    rows = steps.rows
    assert [r["name"] for r in rows[:3]] == ["vanilla", "vanilla, boolean mask", "exact"]
    assert [r["name"] for r in rows[3:]] == ["10% of tokens", "50% of tokens", "100% of tokens"]
    assert [r["tokens"] for r in rows] == [1.0, 1.0, 1.0, *SHARES]
    flops = [r["gflops"] for r in rows[3:]]
    assert flops == sorted(flops)
    assert len(set(flops)) == len(flops)
    assert rows[-1]["gflops"] == pytest.approx(rows[2]["gflops"])  # all tokens: the exact policy's work


def test_no_two_ways_share_a_graph_that_takes_masks_of_two_dtypes() -> None:
    """A compiled graph takes one dtype; eager ones take any, so the other tests here would not see it."""
    recorder, prepared = Recorder(), TINY.prepared(TINY.model(torch.device("cpu"), torch.float32))
    for way in ladder_steps.ways((0.5,), exact=True):
        record_roles(recorder, lowered_for(way, prepared), bind(POLICIES[way.policy], way.parameters), prepared.calls)
    for recording in recorder.recordings.values():
        for specs in zip(*recording.calls, strict=True):
            assert len({spec.dtype for spec in specs if isinstance(spec, TensorSpec)}) < 2
    plain = [role for role, _ in recorder.recordings if role.part == "block"]
    assert len(plain) == 2  # under the additive mask, and under the boolean one


def test_ratios_recompute_from_the_raw_numbers(steps: Report) -> None:
    base = steps.rows[0]
    for row in steps.rows:
        assert len(row["seconds"]) == 2
        assert row["ms"] == pytest.approx(1e3 * statistics.median(row["seconds"]))
        pairs = zip(base["seconds"], row["seconds"], strict=True)
        assert row["speed_up"] == pytest.approx(statistics.median(b / s for b, s in pairs))
        assert row["ideal"] == pytest.approx(base["gflops"] / row["gflops"])
        assert row["realised_over_ideal"] == pytest.approx(row["speed_up"] / row["ideal"])
    assert ladder_steps.worst(steps.rows) == min(r["realised_over_ideal"] for r in steps.rows[2:])


def test_the_schedule_is_a_staircase() -> None:
    own = ladder_run.schedule(chunks=5)
    assert own.shape == (70, 5)  # the last chunk begins 20 rows after the first
    assert (own > 0).sum(0).tolist() == [50] * 5
    assert own[0].tolist() == [1, 0, 0, 0, 0]
    assert own[-1].tolist() == [0, 0, 0, 0, 50]
    second = ladder_run.schedule(chunks=5, ready=1)
    assert (second > 0).sum(0).tolist() == [0, 50, 50, 50, 50]


def test_the_run_integrates_the_steps() -> None:
    """Where time is proportional to tokens, the speed-up is the inverse of the share of tokens."""
    shares = (0.05, 0.5, 1.0)
    rows = [{"name": "vanilla", "kind": "vanilla", "ms": 100.0, "tokens": 1.0}]
    rows += [{"name": f"{s}", "kind": ladder_run.SHARES, "ms": 100.0 * s, "tokens": s} for s in shares]
    made = by_name(ladder_run.integrated(REAL, rows))
    assert made["vanilla"]["seconds_in_all"] == pytest.approx(0.1 * (70 + 65))
    for name in ("exact", "50% of the active tokens", "10% of the active tokens"):
        assert made[name]["speed_up"] == pytest.approx(1 / made[name]["tokens"])
    whole = (5 + 4) * 50 / ((70 + 65) * 5)
    assert made["exact"]["tokens"] == pytest.approx(whole)
    assert made["10% of the active tokens"]["tokens"] == pytest.approx(whole * (5 + 45 * 0.1) / 50)
    assert [r["published"] for r in made.values() if "published" in r] == [6.28, 7.26]


def test_overhead_recomputes(eager: Conditions) -> None:
    made = overhead.report(TINY, (2,), eager)
    assert [r["name"] for r in made.rows] == [overhead.BASE, overhead.OURS, overhead.EAGER]
    assert {r["count"] for r in made.rows} == {TINY.tokens}
    base = made.rows[0]["seconds"]
    for row in made.rows:
        inverse = statistics.median(b / s for b, s in zip(base, row["seconds"], strict=True))
        assert row["overhead"] == pytest.approx(1 / inverse - 1)


@pytest.mark.parametrize("what", ["block", "model"])
def test_a_case_is_read_back_and_timed(what: compile_case.What) -> None:
    case = compile_case.Case(what, TINY, "motioncache", "eager", "cpu", "float32", "cpu")
    assert compile_case.Case.of(case.json()) == case
    found = compile_case.measure(case)
    assert set(found) == {"block": {"first", "seconds"}, "model": {"capture", "compile", "first", "seconds"}}[what]
    assert found["seconds"] == pytest.approx(sum(v for n, v in found.items() if n != "seconds"))


def test_compile_times_are_against_one_block(eager: Conditions) -> None:
    asked: list[tuple[str, int, str]] = []
    caches: list[str] = []

    def run(case: compile_case.Case, cache: str) -> compile_case.SecondsByName:
        asked.append((case.what, case.subject.layers, case.bundle))
        assert cache in caches or not any(Path(cache).iterdir())  # the first to use it finds it empty
        caches.append(cache)
        return {"block": {"first": 2.0}, "model": {"compile": 3.0}, "bundle": {"load": 0.5}}[case.what] | {
            "seconds": {"block": 2.0, "model": 3.0, "bundle": 0.5}[case.what]
        }

    rows = compile_time.measure(TINY, (2, 5), dataclasses.replace(eager, backend="inductor"), None, run)
    each = [[("model", n), ("bundle", n), ("bundle", n)] for n in (2, 5)]
    assert [a[:2] for a in asked] == [("block", 2), *each[0], *each[1]]
    assert len({a[2] for a in asked[1:4]}) == len({a[2] for a in asked[4:]}) == 1
    assert asked[1][2] != asked[4][2]
    assert [caches.index(c) for c in caches] == [0, 1, 2, 2, 4, 5, 5]  # a second start finds what the first has left
    assert not any(Path(c).exists() for c in caches)
    assert [r["name"] for r in rows[1:4]] == [r["name"] for r in rows[4:]]
    assert [r["name"] for r in rows[2:4]] == [compile_time.FIRST, compile_time.LATER]
    assert [r["layers"] for r in rows] == [1, 2, 2, 2, 5, 5, 5]
    assert [r["blocks"] for r in rows] == [1.0, 1.5, 0.25, 0.25, 1.5, 0.25, 0.25]
    assert rows[2]["compile"] == 0.5
    whole = compile_time.measure(TINY, (2,), eager, None, run)
    assert [r["name"] for r in whole] == [compile_time.BLOCK, "motioncache, the whole model"]  # eager has no bundle


@pytest.mark.slow
def test_scaling_varies_one_axis_at_a_time(eager: Conditions) -> None:
    subject = dataclasses.replace(TINY, causal=False)
    axes = scaling.TriedSizes(tokens=(2, 8), layers=(1,), shares=(0.1, 1.0), chunks=(1, 3))
    made = scaling.report(subject, axes, eager)
    rows = made.rows
    assert [r["axis"] for r in rows] == ["layers", "tokens", "tokens", "share", "share", "chunks", "chunks"]
    assert [r["layers"] for r in rows] == [1, *[2] * 6]
    assert [r["count"] for r in rows if r["axis"] == "tokens"] == [2 * 20, 8 * 20]
    assert [r["selected"] for r in rows if r["axis"] == "share"] == [12, 120]
    assert [r["chunks"] for r in rows if r["axis"] == "chunks"] == [1, 3]
    for row in rows:
        assert row["ours_ms"] == pytest.approx(1e3 * statistics.median(row["seconds"]))
    assert set(made.settings["fit_ms"]) == {*scaling.TERMS, "error"}


def test_the_fit_finds_the_terms() -> None:
    rows = [
        {"layers": n, "count": t, "selected": s, "chunks": c, "ours_ms": 2.0 + 0.1 * n + 3e-3 * t + 5e-3 * s}
        for n in (1, 10, 60) for t in (1000, 30_000) for s in (100, 900) for c in (1, 8)
    ]  # fmt: skip
    found = scaling.fit(rows)
    expected = {"constant": 2.0, "per layer": 0.1, "per 1000 tokens": 3.0, "per 1000 selected tokens": 5.0}
    assert {k: pytest.approx(found[k], rel=1e-6) for k in expected} == expected
    assert found["per chunk"] == pytest.approx(0.0, abs=1e-9)
    assert found["error"] < 1e-6


def test_identity_blocks_leave_the_streams() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    output = graph.graph.output_node()
    output.args = ((output.args[0],),)
    graph.recompile()
    chosen = scaling.identity_blocks(lambda module, role: module.forward)
    stream, weight = torch.ones(2), torch.zeros(3)
    assert chosen(graph, Role("rows"))(stream, weight) == (stream,)
    assert chosen(graph, Role("gather")) == graph.forward


def test_what_stands_around_the_blocks_computes_once_for_each_size() -> None:
    asked: list[object] = []
    chosen = scaling.remembered(lambda module, role: lambda *given: asked.append(given) or (len(asked),))
    graph = torch.fx.symbolic_trace(torch.nn.Identity())
    prelude, gather = chosen(graph, Role("prelude")), chosen(graph, Role("gather"))
    assert [prelude(torch.zeros(2), 1), prelude(torch.ones(2), 1), prelude(torch.ones(3), 1)] == [(1,), (1,), (2,)]
    assert [gather(1), gather(1)] == [(3,), (4,)]
