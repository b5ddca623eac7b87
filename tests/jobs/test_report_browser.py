"""The report in a real headless Chromium: nothing fails, pictures are there, the slider moves, a phone can show it.

Where the browser is comes from CHROMIUM, or from the usual names on the PATH; without one the tests skip.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from face_runs import EVALUATIONS, train_beam, write_faces

from jobs.report import main
from pipeline.packages.autoencoder import PackagedAutoencoder

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no Chromium: set CHROMIUM or install one of {', '.join(NAMES)}"
)
SECTIONS = ("summary", "settings", "curves", "samples", "neighbors", "reconstructions", "times", "environment")


class Opened(NamedTuple):
    """A page of the browser, and what went wrong or was asked for while it was there."""

    page: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def report(packaged_autoencoder: PackagedAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run with a name that would be markup."""
    folder = tmp_path_factory.mktemp("report")
    data = write_faces(folder / "cache", packaged_autoencoder)
    run = train_beam(data, folder / "runs", "<img src=x onerror=alert(1)> & a rather long name to be wrapped on phones")
    assert main([str(run), "--runs", str(folder / "runs"), "--cache", str(folder / "cache")]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_report(browser: Any, report: Path, **options: Any) -> Opened:
    page = browser.new_context(**options).new_page()
    opened = Opened(page, [], [])
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("requestfailed", lambda request: opened.complaints.append(request.url[:100]))
    page.on("dialog", lambda dialog: (opened.complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: opened.requests.append(request.url[:100]))
    page.goto(report.as_uri())
    return opened


@pytest.fixture(scope="module")
def desktop(browser: Any, report: Path) -> Opened:
    return open_report(browser, report, viewport={"width": 1280, "height": 900})


def test_nothing_fails_and_nothing_is_fetched(desktop: Opened, report: Path) -> None:
    assert not desktop.complaints
    outside = [url for url in desktop.requests if not url.startswith("data:image/")]
    assert outside == [report.as_uri()[:100]]
    assert "<img src=x onerror=alert(1)>" in desktop.page.inner_text("h1")
    assert desktop.page.locator("img[onerror]").count() == 0


def test_sections_are_there_in_order_with_nothing_missing(desktop: Opened) -> None:
    page = desktop.page
    assert tuple(page.eval_on_selector_all("main > section", "all => all.map(s => s.id)")) == SECTIONS
    assert page.locator("h1").count() == 1
    assert page.locator("nav a").count() == len(SECTIONS)
    missing = page.eval_on_selector_all("section:not(#environment) .missing", "all => all.map(p => p.textContent)")
    assert missing == []
    assert "NOT CelebA" in page.inner_text(".warning")


def test_every_picture_is_loaded_and_described(desktop: Opened) -> None:
    pictures = desktop.page.eval_on_selector_all(
        "img", "all => all.map(i => ({width: i.naturalWidth, alt: i.alt, complete: i.complete}))"
    )
    assert len(pictures) > 20
    assert all(p["complete"] and p["width"] > 0 and len(p["alt"]) > 10 for p in pictures)


def test_the_slider_moves_through_the_evaluations(desktop: Opened) -> None:
    slider = desktop.page.locator("#samples .slider")
    shown, handle, label = slider.locator("figure:visible"), slider.get_by_label("Evaluation"), slider.locator("output")
    assert slider.locator("figure").count() == EVALUATIONS
    assert shown.count() == 1
    assert label.inner_text() == "update 8, epoch 2.333, adversarial phase (gamma 0.1)"
    last = shown.locator("img").get_attribute("src")
    handle.focus()
    desktop.page.keyboard.press("Home")
    assert shown.count() == 1
    assert label.inner_text() == "update 0, epoch 0, before training"
    assert handle.get_attribute("aria-valuetext") == label.inner_text()
    assert shown.locator("img").get_attribute("src") != last
    desktop.page.keyboard.press("ArrowRight")
    assert label.inner_text() == "update 2, epoch 0.3333, likelihood phase (gamma 1)"
    handle.fill(str(EVALUATIONS - 1))
    assert shown.locator("img").get_attribute("src") == last
    assert not desktop.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_text_can_be_read(browser: Any, report: Path, scheme: str) -> None:
    opened = open_report(browser, report, viewport={"width": 375, "height": 812}, color_scheme=scheme)
    page = opened.page
    page.locator("summary").first.click()  # the table of all settings, too
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    wide = page.eval_on_selector_all("img", "all => all.filter(i => i.getBoundingClientRect().right > 375).length")
    assert wide == 0
    assert float(page.evaluate("getComputedStyle(document.body).fontSize").removesuffix("px")) >= 16
    for selector in ("body", "a", "figcaption", ".warning", "td", "thead th", ".caption"):
        assert contrast(page, selector) >= 4.5, selector
    assert not opened.complaints


def contrast(page: Any, selector: str) -> float:
    """Of the text of the first such element and the ground below it (WCAG 2)."""
    colors = page.eval_on_selector(
        selector,
        """element => {
          let ground = element;
          const colorOf = node => getComputedStyle(node).backgroundColor;
          while (colorOf(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          return [getComputedStyle(element).color, colorOf(ground)];
        }""",
    )
    lights = []
    for color in colors:
        shares = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_without_javascript_all_grids_are_shown(browser: Any, report: Path) -> None:
    page = open_report(browser, report, java_script_enabled=False).page
    assert page.locator("#samples .slider figure:visible").count() == EVALUATIONS
    assert page.locator("#samples .slider figcaption:visible").count() == EVALUATIONS
    assert page.locator("#samples .controls:visible").count() == 0
