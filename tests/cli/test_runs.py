"""generate, compile and replay from the shell: what is written, what is refused, and how it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mccompile.api
import mccompile.generate.compare
from mccompile.backend.compiled_roles import CompiledRole, CompiledRoles
from mccompile.backend.record import Recorder
from mccompile.generate.batch import MadeVideo, Recipe, Unmade
from mccompile.generate.media import read_video
from mccompile.policy.planner import read_plan, show_plan
from mccompile.runtime.trace import read_jsonl, share_computed
from tests.cli.conftest import Shell

PARITY = Path(__file__).parent.parent / "data" / "parity"
SMALL = ("--steps", 3, "--frames", 15, "--height", 32, "--width", 32, "--ar-step", 1, "--backend", "eager")


@pytest.mark.slow  # the tour compares too
@pytest.mark.usefixtures("one_capture")
def test_compare(shell: Shell, tmp_path: Path) -> None:
    """One table, both videos, and every decision."""
    out, trace = tmp_path / "out", tmp_path / "trace.jsonl"
    result = shell("generate", *SMALL, "--compare", "--out", out, "--trace", trace, "--set", "warmup=1")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "policy motioncache is approximate: reused tokens differ from computed ones"
    assert lines[1].split() == ["policy", "seconds", "speed-up", "tokens", "FLOPs", "PSNR", "SSIM", "judge"]
    rows = [line.split() for line in lines[2:5]]
    assert [row[:2] for row in rows] == [["vanilla", "compute"], ["exact", "exact"], ["motioncache", "motioncache"]]
    assert rows[0][3:8] == ["1.00x", "100.0%", "100.0%", "-", "-"]
    assert rows[1][6:8] == ["equal", "1.0000"]
    made = {path.name for path in out.iterdir()}
    assert made == {"vanilla.mp4", "motioncache.mp4", "side_by_side.mp4", "contact.png", "comparison.json"}
    assert all(f"wrote {out / name}" in lines for name in made)
    numbers = json.loads((out / "comparison.json").read_text())
    assert numbers["parameters"] == {"warmup": 1.0}
    assert [row["name"] for row in numbers["rows"]] == ["vanilla", "exact", "motioncache"]
    assert numbers["rows"][1]["psnr"] is None
    assert numbers["rows"][2]["tokens"] == share_computed(read_jsonl(trace))
    with Image.open(out / "contact.png") as sheet:
        assert sheet.width > 200


@pytest.mark.usefixtures("one_capture")
def test_a_single_video(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "video.mp4"
    result = shell("generate", *SMALL, "--policy", "exact", "--out", out, "--prompt", "a blue square moving up")
    assert result.status == 0, result.err
    assert result.out.startswith("policy exact is exact: the output is that of the model\n")
    assert [line.partition("] ")[2] for line in result.err.splitlines()] == [
        *("load the model", "capture the model", "exact"), *(f"exact: step {i} of 4" for i in (1, 2, 3, 4))
    ]
    assert out.stat().st_size > 1000
    assert out.with_suffix(".png").exists()


class MadeUp:
    """Stands for a pipeline: each video is grey. The prompt `bad` is refused the first time."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str | None, int]] = []

    def said(self) -> list[str]:
        return ["said of the policy"]

    def make(self, name: str, prompt: str | None, seed: int) -> MadeVideo | Unmade:
        again = (name, prompt, seed) in self.made
        self.made.append((name, prompt, seed))
        refused = prompt == "bad" and not again
        return Unmade("too long") if refused else MadeVideo(np.full((2, 32, 32, 3), 0.5, np.float32), 1.5, 0.25)


def test_a_batch_makes_what_is_not_there(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, out, rig = tmp_path / "p.txt", tmp_path / "out", MadeUp()
    prompts.write_text("a red circle\nbad\n")
    monkeypatch.setattr(Recipe, "build", lambda recipe, shown, progress: rig)
    batch = ("generate", "--prompts", prompts, "--out", out, "--seed", 3)
    result = shell(*batch)
    assert result.status == 1
    assert "said of the policy\nmotioncache_1: 1.50 s, 25.0% of the tokens computed\n" in result.out
    assert result.out.endswith(f"failed: motioncache_2: too long\n1 of 2 videos are in {out}\n")
    assert {path.name for path in out.iterdir()} == {"motioncache_1.mp4", "motioncache_1.png", "batch.json"}
    result = shell(*batch)
    assert result.status == 0, result.err
    assert result.out.startswith(f"going on with {out}: 1 of 2 videos are there\n")
    assert shell(*batch).out.endswith(f"2 of 2 videos are in {out}\n")
    bad = ("motioncache_2", "bad", 3)
    assert rig.made == [("motioncache_1", "a red circle", 3), bad, bad]
    other = shell(*batch[:-1], 1)
    assert (other.status, "a batch with another videos" in other.err) == (2, True)


@pytest.mark.usefixtures("one_capture")
def test_a_video_for_each_prompt_and_seed(shell: Shell, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a blue square moving up\na red circle moving left\n", encoding="utf-8")
    short = ("--steps", 1, "--frames", 15, "--height", 32, "--width", 32, "--ar-step", 0, "--backend", "eager")
    result = shell("generate", *short, "--policy", "compute", "--prompts", prompts, "--num-videos", 2, "--out", out)
    assert result.status == 0, result.err
    assert sorted(path.name for path in out.glob("*.mp4")) == [f"compute_{n}.mp4" for n in range(1, 5)]
    assert result.out.count("100.0% of the tokens computed") == 4
    alone = shell("generate", *short, "--policy", "compute", "--prompt", "a red circle moving left", "--seed", 1,
                  "--out", tmp_path / "alone.mp4")  # fmt: skip
    assert alone.status == 0, alone.err
    assert (tmp_path / "alone.png").stat().st_size > 0
    last, single = (read_video(str(path)) for path in (out / "compute_4.mp4", tmp_path / "alone.mp4"))
    assert [frame.tobytes() for frame in last] == [frame.tobytes() for frame in single]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--prompts", "p.txt", "--prompt", "x"), "--prompt gives the prompt"),
        (("--num-videos", 2, "--trace", "t.jsonl"), "it is of one video, and --num-videos asks for several"),
        (("--num-videos", 2, "--compare"), "it is of one video"),
        (("--prompts", "p.txt", "--record", "r"), "it is of one video, and --prompts asks for several"),
        (("--num-videos", 2, "--out", "x.mp4"), "it is of one video"),
        (("--strength", 0), "the share of the steps that run"),
        (("--image", "none.png", "--prompt", "x"), "has no argument `image`"),
    ],
)
def test_options_of_the_video_that_mean_nothing(shell: Shell, options: tuple[object, ...], why: str) -> None:
    result = shell("generate", *options)
    assert result.status == 2
    assert "MC0705" in result.err
    assert why in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--model", "nowhere"), 2, "error[MC0704]"),
        (("--policy", "motioncash"), 1, "error[MC0109]"),
        (("--set", "treshold=0.2"), 1, "error[MC0301]"),
        (("--set", "threshold=9"), 1, "error[MC0302]"),
        (("--set", "threshold=high"), 1, "error[MC0310]"),
        (("--out", "x.gif"), 2, "neither a folder nor an .mp4"),
        (("--out", "x.mp4", "--compare"), 2, "a comparison writes several files"),
        (("--out", "/proc/none/out"), 2, "error[MC0707]"),
        (("--device", "tpu"), 2, "error[MC0705]"),
        (("--device", "cpu", "--cpu-offload"), 2, "the model runs on the CPU already"),
        (("--model", "."), 2, "no model_index.json"),
        (("--model", ""), 2, "the name is empty"),
        (("--policy", ""), 1, "error[MC01"),
        (("--device", ""), 2, "no such kind of device"),
        (("--device", "cpu:7"), 2, "there is one CPU"),
        (("--device", "cpu:"), 2, "there is one CPU"),
        (("--dtype", "float16", "--device", "cpu"), 2, "choose float32, or bfloat16"),
        (("--guidance-scale", "nan"), 2, "it is no finite number"),
        (("--guidance-scale=-inf",), 2, "it is no finite number"),
        (("--ar-step", "-1"), 2, "`--ar-step -1` cannot be used here"),
        (("--seed", "99999999999999999999"), 2, "a seed has 64 bits"),
        (("--fps", "1000000000000"), 2, "at most 1000 frames a second"),
        (("--repeat", "2"), 2, "only a comparison is timed"),
        (("--frames", "1"), 2, "error[MC0717]"),
        (("--frames", "2"), 2, "error[MC0717]"),
        (("--causal-block-size", "999"), 2, "error[MC0717]"),
        (("--trace", "."), 2, "error[MC0707]"),
        (("--trace", "/proc/none/t.jsonl"), 2, "error[MC0707]"),
        (("--record", "/proc/none/run"), 2, "error[MC0707]"),
        (("--out", "x.mp4", "--trace", "x.mp4"), 2, "it is also the file of `--out x.mp4`"),
        (("--out", "x.mp4", "--trace", "./x.png"), 2, "it is also the file of `--out x.mp4`"),
        (("--record", "r", "--trace", "r/events.jsonl"), 2, "it is also the file of `--trace r/events.jsonl`"),
        (("none.bundle",), 1, "error[MC0811]"),
        (("none.bundle", "--policy", "exact"), 2, "a bundle holds one policy"),
    ],
)
def test_what_cannot_be_generated(
    words: tuple[str, ...], status: int, says: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = shell("generate", *words)
    assert (result.status, result.out) == (status, "")
    assert says in result.err
    assert "help: " in result.err


def uncompiled(recorder: Recorder, lowered: object, **_: object) -> CompiledRoles:
    """The roles of a bundle without compiling any: what this file tests is the way there and back."""
    return CompiledRoles(
        {k: CompiledRole(r.role, "eager", "in this test", r.tensors) for k, r in recorder.recordings.items()}
    )


@pytest.mark.usefixtures("one_capture")
def test_a_bundle_there_and_back(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation from a bundle is the one that its policy gives, and nothing is captured for it."""
    monkeypatch.setattr(mccompile.generate.compare, "inductor", uncompiled)
    file, traces = tmp_path / "half.bundle", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    made = shell("compile", "embedded", "motioncache", "-o", file, "--set", "warmup=1")
    assert made.status == 0, made.err
    assert made.out.startswith(f"wrote {file}, ")
    monkeypatch.setattr(mccompile.api, "capture_batched", None)
    video = SMALL[:-2]
    once = shell("generate", file, *video, "--out", tmp_path / "a.mp4", "--trace", traces[0])
    assert once.status == 0, once.err
    again = shell("generate", file, *video, "--out", tmp_path / "b.mp4", "--trace", traces[1], "--set", "threshold=0.5")
    assert again.status == 0, again.err
    first, second = (read_jsonl(path) for path in traces)
    assert {e.phase for e in first} == {"", "warmup", "coarse"}
    assert share_computed(second) <= share_computed(first) < 1.0
    file.write_bytes(file.read_bytes()[:-100])
    torn = shell("generate", file, *video, "--out", tmp_path)
    assert (torn.status, torn.out) == (1, "")
    assert "error[MC081" in torn.err


@pytest.mark.usefixtures("one_capture")
def test_stages_of_a_model(shell: Shell) -> None:
    """With a model the plan knows its timestep embedding; the graph is Python."""
    text = shell("explain", "motioncache", "--stage", "plan", "--model", "embedded", "--steps", 14).out
    plan = read_plan(text)
    assert show_plan(plan) == text
    assert [c.of.name for c in plan.changes] == ["modulation"]
    assert {c.action for c in plan.cells[5:]} > {"reuse"}
    graph = shell("explain", "motioncache", "--stage", "graph").out
    compile(graph, "graph.py", "exec")
    assert "\ndef decide(\n" in graph


@pytest.mark.usefixtures("one_capture")
def test_memory_of_what_a_policy_keeps(shell: Shell, tmp_path: Path) -> None:
    """A line per kind; a budget is met by a measure, which is named, or refused with the least that could be kept."""
    made = shell("explain", "motioncache", "--stage", "memory")
    assert made.status == 0, made.err
    *parts, how = made.out.splitlines()
    size = {line[:14].strip(): float(line[14:].removesuffix("MB")) for line in parts}
    kinds = ("key values", "text", "residuals", "merged", "states", "increments")
    assert size["kept"] == pytest.approx(sum(size[k] for k in kinds), abs=0.01) == pytest.approx(size["on the device"])
    assert how == "keys and values in the model's dtype, residuals in the model's dtype, on the model's device"
    file = tmp_path / "tight.policy"
    words = "policy tight extends motioncache {{ cache {{ budget: {} }} }}"
    file.write_text(words.format("20MB"))
    tight = shell("explain", file, "--stage", "memory", "--size", "64x64x31").out.splitlines()
    assert tight[-2].split() == ["budget", "20.000", "MB"]
    assert tight[-1] == "keys and values in float8, residuals in bfloat16, on the model's device"
    assert "keeps at most 20,000,000 bytes" in shell("explain", file).out
    file.write_text(words.format("1MB"))
    none = shell("explain", file, "--stage", "memory")
    assert none.status == 1
    assert "error[MC0504]: policy `tight` may keep 1,000,000 bytes, and would keep at least" in none.err


def test_replay(shell: Shell) -> None:
    result = shell("replay", PARITY / "tokens_fine.safetensors")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert len(lines) == 61
    assert lines[0].startswith("call   0  cond    chunks 0")
    assert lines[-1].startswith("masks agree: 120/120  max error: ")
    assert float(lines[-1].split()[-1]) < 1e-4


def test_replay_of_another_policy(shell: Shell) -> None:
    result = shell("replay", PARITY / "tokens_fine.safetensors", "--policy", "exact")
    assert result.status == 1
    assert "MASK DIFFERS in chunk 0" in result.out
    agree, masks = result.out.splitlines()[-1].split()[2].split("/")
    assert 0 < int(agree) < int(masks) == 120


@pytest.mark.parametrize(("break_it", "says"), [("settings", "MC0711"), ("tensors", "MC0710"), ("name", "MC0710")])
def test_replay_of_what_is_no_trace(break_it: str, says: str, shell: Shell, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy((PARITY / "tokens_fine").with_suffix(suffix), tmp_path / f"t{suffix}")
    if break_it == "settings":
        (tmp_path / "t.json").write_text("{}")
    if break_it == "tensors":
        (tmp_path / "t.safetensors").write_bytes(b"not it")
    result = shell("replay", tmp_path / ("none.safetensors" if break_it == "name" else "t.safetensors"))
    assert (result.status, result.out) == (2, "")
    assert f"error[{says}]" in result.err
