"""Whole generations, at a small size: the ladder's rows and the peers', each against the raw numbers."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mccompile.generate.placement import Placement
from mccompile.generate.run import Generation, Settings
from mccompile.studio.bench import generations, ladder, peers, stock, verdict, wan
from mccompile.studio.bench.generations import BETWEEN, EXACT, VANILLA, GenerationJob, Run, take_turns
from mccompile.studio.bench.peer_ways import SKYREELS, WAN, Peer, Setup, calibrated_ratios, heard, left_clean
from mccompile.studio.bench.report import Report
from mccompile.studio.bench.timing import CallTimer
from tests.embedded_once import one_capture

CLOCK = CallTimer(torch.device("cpu"), "cpu")
SMALL = Settings(num_inference_steps=6, num_frames=15, height=32, width=32, ar_step=2)
TINY_WAN = {"num_inference_steps": 8, "num_frames": 7, "height": 32, "width": 32}
ON_WAN = ("TaylorSeer", "PyramidAttentionBroadcast", "FasterCache")
POLICIES = {"fixed_interval": ({"interval": 2, "warmup": 1}, {"interval": 3, "warmup": 1})}


def silent(name: str):
    return lambda done, total: None


@pytest.fixture(scope="module")
def job() -> GenerationJob:
    with one_capture():
        return generations.load("embedded", Placement.of("cpu", None, False), SMALL)


@pytest.fixture(scope="module")
def made(job: GenerationJob) -> Report:
    return ladder.report(job, generations.contenders(POLICIES), "eager", 2, CLOCK, silent)


def test_longer_intervals_compute_less(made: Report) -> None:
    names = [r["name"] for r in made.rows]
    assert names == ["vanilla", "exact", "fixed_interval 2 1", "fixed_interval 3 1", stock.EAGER]
    assert made.rows[-1]["psnr"] is None, "the stock pipeline gives vanilla's video bit for bit"
    for key in ("tokens", "flops"):
        vanilla, exact, two, three = (r[key] for r in made.rows[:-1])
        assert vanilla == 1.0 > exact
        assert 1.0 > two > three > 0.0


def test_the_rows_recompute_from_the_raw_seconds(made: Report) -> None:
    for row in made.rows:
        assert row["median"] == statistics.median(row["seconds"])
        inverse = statistics.median(b / s for b, s in zip(row["vanilla_seconds"], row["seconds"], strict=True))
        assert row["speed_up"] == pytest.approx(inverse)
        if "flops" in row:
            assert row["realised_over_ideal"] == pytest.approx(inverse * row["flops"])


def test_vanilla_equals_itself_and_exact_is_near(made: Report) -> None:
    assert made.rows[0]["psnr"] is None
    assert made.rows[0]["ssim"] == pytest.approx(1.0)
    assert made.rows[1]["psnr"] is None or made.rows[1]["psnr"] > 60
    assert made.rows[3]["psnr"] < 60


def test_a_way_that_fails_is_left_out_and_says_why(job: GenerationJob) -> None:
    calls: list[str] = []

    def well(stop: int | None) -> Generation:
        calls.append(f"well {stop}")
        return Generation(torch.zeros(1, 2, 2, 3).numpy(), 0.0)

    def ill(stop: int | None) -> Generation:
        calls.append(f"ill {stop}")
        raise ValueError("no such block\nmore")

    laps = take_turns({"well": well, "ill": ill}, 2, CLOCK)
    assert calls == ["well 2", "ill 2", "well None", "well None"]  # the first way alone, in two rounds
    assert laps["ill"].error == "ValueError: no such block"
    assert len(laps["well"].seconds) == 2


def test_each_way_is_compared_with_the_runs_of_the_first_around_it() -> None:
    """The machine becomes twice as slow after the first group: speed-ups do not notice."""
    calls: list[str] = []
    now = 0.0

    class Slowing(CallTimer):
        def seconds(self, call: Callable[[], object]) -> float:
            call()
            return now

    def way(name: str, seconds: float) -> Run:
        def run(stop: int | None) -> Generation:
            nonlocal now
            calls.append(name)
            now = seconds * (1 if calls.count("first") < 4 else 2)
            return Generation(torch.zeros(1, 2, 2, 3).numpy(), 0.0)

        return run

    others = [f"way {i}" for i in range(BETWEEN + 1)]
    laps = take_turns({"first": way("first", 4.0), **{n: way(n, 1.0) for n in others}}, 1, Slowing(CLOCK.device))
    timed = calls[len(others) + 1 :]
    assert timed == ["first", *others[:BETWEEN], "first", others[BETWEEN], "first"]
    assert laps[others[0]].base == [4.0]
    assert laps[others[-1]].base == [6.0]  # between a quick run and a slow one
    assert laps["first"].base == laps["first"].seconds == [4.0, 4.0, 8.0]


def test_a_peer_leaves_the_pipeline_as_it_was(job: GenerationJob) -> None:
    stocked = peers.Stock(job, "eager", silent)
    own, forward = job.pipe.transformer, type(job.pipe.transformer.blocks[0]).forward
    before = stocked.run(None).video
    taylor = next(p for p in SKYREELS if p.kind == "TaylorSeer")
    rows = stocked.rows_of_schedule()
    changed = stocked.run(None, taylor, Setup(job.pipe, rows, ()))
    assert (changed.video != before).any()
    assert (stocked.run(None).video == before).all()
    assert job.pipe.transformer is own
    assert all(block.forward.__func__ is forward for block in own.blocks)


def test_the_baselines_compile_the_whole_model_and_each_block(
    job: GenerationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []

    def counted(forward: Callable[..., object], **_: object) -> Callable[..., object]:
        return lambda *args, **kwargs: (called.append(forward.__self__), forward(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", counted)
    own = job.pipe.transformer
    ways = stock.baselines(job, silent, compiled=True)
    assert list(ways) == [stock.EAGER, stock.WHOLE, stock.REGIONAL]
    expected = {stock.EAGER: set(), stock.WHOLE: {own}, stock.REGIONAL: set(own.blocks)}
    for name, way in ways.items():
        called.clear()
        way(1)
        assert set(called) == expected[name], name
        assert "forward" not in vars(own)
        assert not any("forward" in vars(block) for block in own.blocks)


@pytest.mark.slow
def test_magcache_is_calibrated_above_compiled_blocks(wan_job: GenerationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled block takes its module's forward: the hook must lie over it, not under it."""
    called: list[int] = []

    def counted(forward: Callable[..., object], **_: object) -> Callable[..., object]:
        return lambda *args, **kwargs: (called.append(1), forward(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", counted)
    stocked = peers.Stock(wan_job, "inductor", silent)
    rows = stocked.rows_of_schedule()
    ratios = calibrated_ratios(lambda peer: stocked.run(None, peer, Setup(wan_job.pipe, rows, ())))
    assert len(ratios) == rows == TINY_WAN["num_inference_steps"]
    assert ratios[0] == 1.0 != ratios[1]
    assert len(called) == rows * len(wan_job.pipe.transformer.blocks)


def test_the_schedule_has_its_rows(job: GenerationJob) -> None:
    assert peers.Stock(job, "eager", silent).rows_of_schedule() == 6 + 2 * (4 // 4)


@pytest.mark.parametrize("peers_of", [SKYREELS, WAN])
def test_every_peer_has_a_name(peers_of: tuple[Peer, ...]) -> None:
    names = {p.name for p in peers_of}
    assert len(names) == len(peers_of)
    assert not names & {VANILLA, EXACT, peers.STOCK}


def test_every_peer_has_one_quick_setting() -> None:
    assert sorted(p.kind for p in SKYREELS if p.first) == sorted({p.kind for p in SKYREELS})


def test_what_hooks_warn_of_is_a_remark() -> None:
    logger = logging.getLogger("diffusers.hooks.some_cache")
    with heard() as lines:
        logger.warning("running in %s mode", "fail-open")
        logger.info("a step")
    logger.setLevel(logging.ERROR)
    assert lines == ["running in fail-open mode"]


@pytest.fixture(scope="module")
def wan_job() -> GenerationJob:
    return wan.load(Placement.of("cpu", None, False), replace(wan.SETTINGS, **TINY_WAN))


def test_the_wan_model_is_the_embedded_one(job: GenerationJob, wan_job: GenerationJob) -> None:
    """Equal timesteps for all frames and one chunk that sees itself: the two transformers compute the same."""
    ours, theirs = job.pipe.transformer, wan_job.pipe.transformer
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 24, 4, 4, 4, generator=generator)
    text = torch.randn(1, 6, 64, generator=generator)
    with torch.no_grad():
        made = ours(latents, torch.full((1, 4), 500), text, enable_diffusion_forcing=True, return_dict=False)[0]
        wanted = theirs(latents, torch.full((1,), 500), text, return_dict=False)[0]
    assert torch.allclose(made, wanted, atol=1e-5)


def test_peers_on_wan_run_beside_ours(wan_job: GenerationJob) -> None:
    chosen = [next(p for p in WAN if p.kind == kind) for kind in ON_WAN]
    ours = {"fixed_interval": ({"interval": 2, "warmup": 1},)}
    made = peers.report("peers_wan", wan_job, ours, chosen, "eager", 1, CLOCK, silent, None)
    rows = {str(r["name"]): r for r in made.rows}
    assert list(rows) == ["vanilla", "exact", "fixed_interval 2 1", peers.STOCK, *(p.name for p in chosen)]
    assert all("speed_up" in r for r in rows.values()), [r["remark"] for r in rows.values()]
    assert verdict.near(rows[peers.STOCK]) == verdict.ALIKE
    assert [r["side"] for r in rows.values()] == ["ours"] * 3 + ["peers"] * (1 + len(chosen))
    for peer in chosen:
        assert rows[peer.name]["psnr"] is not None, f"{peer.name} changed nothing"
    table = verdict.report(made)
    assert {r["name"] for r in table.rows} == {peers.STOCK, *(p.name for p in chosen)}


def test_what_a_peer_leaves_in_the_modules_is_gone_after_it() -> None:
    """cache-dit leaves counters in the list of blocks, and a compiled model would refuse the model for them."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].given = 1

    def run() -> None:
        model[0].counter = model.counter = 3
        raise ValueError("a peer that fails")

    with pytest.raises(ValueError, match="a peer"), left_clean(model):
        run()
    assert model[0].given == 1
    assert "counter" not in {*vars(model), *vars(model[0])}
