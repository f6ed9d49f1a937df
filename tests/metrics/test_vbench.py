"""VBench runs in a Python of its own; a package of the same form stands for it here, and what it says is measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mccompile.cli.options import vbench_dimensions
from mccompile.generate.video import write_mp4
from mccompile.metrics import read_clip, vbench
from mccompile.metrics.errors import MetricUnavailable
from mccompile.metrics.vbench_process import PYTHON, read_dimensions
from mccompile.studio.explore.extras import NO_EXTRAS, Extras
from tests.cli.conftest import Shell, shell  # noqa: F401  # the fixture

# What VBench 0.1.5 has: the class, its arguments, and the file of results. Its only measure is the mean brightness.
PACKAGE = """
import json, os, pathlib
import av, torch

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        assert isinstance(device, torch.device) and full_info_dir.endswith("VBench_full_info.json")
        self.output_path = output_path

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, mode="vbench_standard"):
        assert mode == "custom_input"
        if "imaging_quality" in dimension_list:
            raise FileNotFoundError("pretrained/musiq_spaq_ckpt-358bb6af.pth")
        print("what it prints is not the result")
        each = []
        for path in sorted(os.listdir(videos_path)):
            with av.open(os.path.join(videos_path, path)) as film:
                frames = [frame.to_ndarray(format="rgb24").mean() / 255 for frame in film.decode(video=0)]
            each.append({"video_path": path, "video_results": sum(frames) / len(frames)})
        mean = sum(one["video_results"] for one in each) / len(each)
        found = {dimension: [BAD if dimension == "dynamic_degree" else mean, each] for dimension in dimension_list}
        pathlib.Path(self.output_path, name + "_eval_results.json").write_text(json.dumps(found))

BAD = float("nan")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv(PYTHON, sys.executable)


def film(place: Path, value: float) -> Path:
    write_mp4(place, np.full((9, 32, 32, 3), value, np.float32), 8)
    return place


@pytest.mark.usefixtures("installed")
def test_each_dimension_is_the_mean_over_the_videos(tmp_path: Path) -> None:
    films = [film(tmp_path / "one.mp4", 0.25), film(tmp_path / "other.mp4", 0.75)]
    seen = [float(read_clip(one).frames.mean()) for one in films]
    found = vbench(films, ["motion_smoothness", "temporal_flickering"])
    assert list(found) == ["motion_smoothness", "temporal_flickering"]
    assert found["motion_smoothness"] == pytest.approx(sum(seen) / 2, abs=0.01)
    assert vbench(films[:1], ["motion_smoothness"])["motion_smoothness"] == pytest.approx(seen[0], abs=0.01)


@pytest.mark.usefixtures("installed")
def test_what_it_cannot_do_is_told_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [film(tmp_path / "one.mp4", 0.25)]
    with pytest.raises(MetricUnavailable, match=r"FileNotFoundError: pretrained/musiq"):
        vbench(one, ["imaging_quality"])
    with pytest.raises(MetricUnavailable, match="its dynamic_degree is nan"):
        vbench(one, ["motion_smoothness", "dynamic_degree"])
    monkeypatch.setenv(PYTHON, str(tmp_path / "no python"))
    with pytest.raises(MetricUnavailable, match=f"{PYTHON} names `.*no python`: No such file"):
        vbench(one, ["motion_smoothness"])
    monkeypatch.delenv(PYTHON)
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(MetricUnavailable, match="No module named 'vbench'"):
        Extras(vbench=("motion_smoothness",)).check()  # before a search captures a model


def test_names_are_those_of_any_video() -> None:
    assert read_dimensions("motion_smoothness, dynamic_degree,motion_smoothness") == (
        "motion_smoothness", "dynamic_degree",
    )  # fmt: skip
    assert vbench_dimensions("imaging_quality") == ("imaging_quality",)
    for text, named in ("object_class", "`object_class`"), ("", "``"), ("motion_smoothness,colour", "`colour`"):
        with pytest.raises(ValueError, match=f"^{named} is no dimension of any video: subject_consistency, "):
            read_dimensions(text)


@pytest.mark.usefixtures("installed")
def test_the_verb_shows_both_videos_and_refuses_folders(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    vanilla, video = film(tmp_path / "vanilla.mp4", 0.25), film(tmp_path / "video.mp4", 0.75)
    shown = shell("metrics", vanilla, video, "--vbench", "motion_smoothness")
    assert shown.status == 0, shown.err
    (line,) = (row for row in shown.out.splitlines() if row.startswith("VBench motion_smoothness"))
    data = json.loads(shell("metrics", vanilla, video, "--vbench", "motion_smoothness", "--json").out)
    own, stock = data["vbench"]["motion_smoothness"]
    assert line.split()[2:] == [f"{own:.4f}", "vanilla", f"{stock:.4f}"]
    assert own == pytest.approx(0.75, abs=0.01)
    assert stock == pytest.approx(0.25, abs=0.01)
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(9):
        Image.new("RGB", (32, 32)).save(frames / f"{number}.png")
    refused = shell("metrics", vanilla, frames, "--vbench", "motion_smoothness")
    assert refused.status == 2
    assert "is a folder of frames" in refused.err


@pytest.mark.slow  # the verb measures videos in the same way
@pytest.mark.usefixtures("installed")
def test_a_search_measures_its_videos(tmp_path: Path) -> None:
    extras = Extras(vbench=("motion_smoothness",))
    extras.check()
    videos = [np.full((9, 32, 32, 3), value, np.float32) for value in (0.25, 0.75)]
    assert extras.dimensions(videos)["motion_smoothness"] == pytest.approx(0.5, abs=0.01)
    assert extras.about() == {"vbench": ["motion_smoothness"]}
    assert NO_EXTRAS.dimensions(videos) == {}
    assert NO_EXTRAS.about() == {}
