"""The page in a real browser: by mouse, by keyboard, on a phone; nothing on it is an error, and it asks nobody else."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.report.test_page import CHROMIUM, FLAGS
from tests.serve.conftest import Served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
LIMIT = 600_000  # ms, against hanging for ever


def test_the_page_works(served: Served) -> None:
    wrong: list[str] = []
    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=LIMIT)
        page = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 900})
        page.set_default_timeout(LIMIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on(
            "request", lambda asked: None if asked.url.startswith((served.url, "data:")) else wrong.append(asked.url)
        )
        page.goto(served.url)
        labelled(page)
        written(page)
        assert wrong == []
        saved(page, served)
        wrong = [said for said in wrong if "409" not in said]  # the browser's own word for the refusal
        assert wrong == []
        ran(page)
        queued(page)
        on_a_phone(page)
        browser.close()
    assert wrong == []


def labelled(page: Page) -> None:
    """Everything that takes input has a name that a screen reader tells, and the page has its landmarks."""
    unnamed = """() => [...document.querySelectorAll('input, select, textarea, button')]
        .filter(e => !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.id)"""
    assert page.evaluate(unnamed) == []
    assert page.locator("main").count() == page.locator("h1").count() == 1
    for role, name in (("region", "Policy"), ("region", "Plan"), ("region", "Runs"), ("textbox", "Text of the policy")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1  # type: ignore[arg-type]


def written(page: Page) -> None:
    """Errors come while one writes, stand at their places, and go; the plan and the parameters follow the text."""
    text = page.locator("#text")
    page.get_by_label("Open").select_option("shipped/motioncache")
    expect(page.locator("#plan-said")).to_contain_text(
        "motioncache, 10 steps of a chunk: 5 computed, 0 reused, 5 decided"
    )
    assert page.locator("#plan i.dynamic").count() == 5
    page.get_by_label("warmup").fill("3")
    expect(page.locator("#plan-said")).to_contain_text("3 computed")
    whole = text.input_value()
    text.fill(whole.replace("accumulate(drift) <", "acumulate(drift) <"))
    expect(page.locator("#verdict")).to_have_text("1 error")
    expect(page.locator("#marks mark")).to_have_text("acumulate")
    assert text.get_attribute("aria-invalid") == "true"
    assert "did you mean" in page.locator("#problems pre").inner_text()
    page.locator("#problems button").press("Enter")
    assert page.evaluate("getSelection().toString()") == "acumulate"
    page.keyboard.type("accumulate")
    expect(page.locator("#verdict")).to_have_text("no error")
    assert text.input_value() == whole


def saved(page: Page, served: Served) -> None:
    page.get_by_label("Name").fill("tried")
    page.locator("#text").press("Control+s")
    expect(page.locator("#saved-said")).to_contain_text("tried.policy")
    first = (served.folder / "tried.policy").read_text()
    assert first.startswith("policy motioncache")
    page.locator("#text").fill(first.replace("0.10", "0.12"))
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#saved-said")).to_contain_text("is there already")
    page.get_by_role("button", name="Save over it").click()
    expect(page.locator("#saved-said")).to_contain_text("saved")
    assert "0.12" in (served.folder / "tried.policy").read_text()
    assert page.locator("#saved option").all_inner_texts() == ["tried"]


def ran(page: Page) -> None:
    """By keyboard alone: the result, the video that plays, and the report whose script runs, but not as this page."""
    page.locator("#text").press("Control+Enter")
    expect(page.locator("#result-head")).to_have_text("Result of run 1: tried")
    expect(page.locator("#result-said")).to_contain_text("31.3 dB, worst frame 7 with 28.5 dB")
    assert page.locator("#runs tbody tr").inner_text().split("\t")[3:9] == [
        "done", "2.50x", "40.0%", "35.0%", "31.3", "28.5 (7)",
    ]  # fmt: skip
    assert page.locator("#warnings li").all_inner_texts() == ["refused conv3d_1: mixes tokens", "a warning"]
    expect(page.frame_locator("#report").locator("#p")).to_have_text("drawn")
    page.locator("#video").evaluate("v => new Promise(done => v.readyState > 1 ? done() : v.onloadeddata = done)")
    assert page.locator("#video").evaluate("v => v.videoWidth") == 64


def queued(page: Page) -> None:
    """Two runs: one at work, one that waits and knows its place; both are cancelled, and a refused one says why."""
    page.get_by_label("Prompt").fill("waits")
    run = page.get_by_role("button", name="Run", exact=True)
    run.press("Enter")
    expect(page.locator("#now")).to_have_text("Run 2: motioncache")
    expect(page.locator("#progress")).to_have_attribute("value", "0.25")
    run.press("Enter")
    rows = page.locator("#runs tbody tr")
    expect(rows.nth(0)).to_contain_text("waiting, 1 before it")
    expect(rows.nth(1)).to_contain_text("motioncache 3/12")
    page.get_by_role("button", name="Cancel run 3").press("Enter")
    expect(rows.nth(0)).to_contain_text("cancelled")
    page.get_by_role("button", name="Cancel run 2").click()
    expect(rows.nth(1)).to_contain_text("cancelled")
    page.get_by_label("Prompt").fill("refused")
    run.click()
    expect(page.locator("#refused")).to_contain_text("help: ask for something else")
    page.reload()  # runs are the server's, the text is this tab's
    expect(rows).to_have_count(4)
    assert "0.12" in page.locator("#text").input_value()


def on_a_phone(page: Page) -> None:
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
