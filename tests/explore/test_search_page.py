"""The page of a search, as text and in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import sync_playwright

from mccompile.studio.explore.outcome import Outcome, Trial
from mccompile.studio.explore.page import render, settings_of
from mccompile.studio.explore.search import Found
from mccompile.studio.explore.space import Point
from mccompile.studio.explore.study import Failed
from tests.report.test_page import CHROMIUM, FLAGS, in_chromium


def trial(number: int, policy: str, flops: float, psnr: float, **picks: str) -> Trial:
    return Trial(
        number, Point(policy, {"threshold": 0.1}, picks), Outcome(flops, 0.5, 1.0, 2.0, psnr, psnr, 0.9, None), None
    )


def page() -> str:
    trials = [
        trial(0, "a", 0.5, 30.0, cell="token"), trial(1, "a", 0.25, 28.0), trial(2, "b", 0.6, 200.0),
        trial(3, "static_2", 0.4, 20.0),
    ]  # fmt: skip
    failed = [Failed(4, Point("a", {}), "it went <wrong>", False), Failed(5, Point("a", {}), "too slow", True)]
    written = [("out/x.policy", "0", "29.80 dB")]
    return render(Found(trials, failed, False), "4 trials", {"model": "embedded"}, written, ["static_2"])


def test_every_trial_is_on_the_page() -> None:
    text = page()
    assert "<title>a, b: report of a search</title>" in text
    assert "cell=token threshold=0.1" in text
    assert text.count('<tr class="front">') == 3  # no other trial beats them
    assert "it went &lt;wrong&gt;" in text
    assert "trial 5, skipped: too slow" in text
    assert "out/x.policy" in text
    assert settings_of(Point("a", {})) == "-"


@in_chromium
def test_the_plane_is_drawn(tmp_path: Path) -> None:
    """At a phone's width, in the dark: no error, no request, a point for each trial, nothing wider than the screen."""
    path = tmp_path / "report.html"
    path.write_text(page(), encoding="utf-8")
    problems: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        shown = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        shown.goto(path.as_uri())
        shown.wait_for_selector("#plane .point")
        assert shown.locator("#plane .point").count() == 4
        assert shown.locator("#plane .legendtext").all_text_contents() == ["Pareto front", "a", "b", "static_2"]
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert problems == []
