"""The page in a real browser: it draws, it answers the pointer, it fits, it asks for nothing."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from langsamp_jax.report.page import write_report
from tests.report.test_report import FIGURES

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
HOSTILE = (
    "<script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "</script><script>window.owned=1</script>",
    '"&{{ 7 * 7 }}',
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; the tests are skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Any]]:
    """``open_page(file, size, scheme)``: the page when all is drawn. What it says on the console,
    what it raises and what it asks for besides itself fails the test."""
    bad: list[str] = []
    pages = []

    def open_page(file: Path, size: str = "desktop", scheme: str = "light") -> Any:
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: bad.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: bad.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "data:"))
                or bad.append(f"request: {request.url}"))  # fmt: skip
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not bad


@pytest.fixture(scope="module")
def report(full_run: Path) -> Path:
    return write_report(full_run)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_and_is_not_blank(size, scheme, report, open_page, tmp_path):
    page = open_page(report, size, scheme)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width == SIZES[size][0]  # nothing to scroll to on the right
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L"))
    ground = np.bincount(picture.ravel()).argmax()
    assert (ground > 200) == (scheme == "light") and (ground < 60) == (scheme == "dark")
    drawn = np.abs(picture.astype(int) - int(ground)) > 60
    assert 0.01 < drawn.mean() < 0.5
    for part in np.array_split(drawn, 12):
        assert part.any()


def test_every_chart_has_marks_and_a_description(report, open_page):
    page = open_page(report)
    charts = page.query_selector_all("[data-chart]")
    assert {chart.get_attribute("data-chart") for chart in charts} == FIGURES
    for chart in charts:
        name = chart.get_attribute("data-chart")
        assert len(chart.get_attribute("aria-label")) > 20, name
        if canvas := chart.query_selector("canvas"):
            colours = canvas.evaluate(
                "c => new Set(new Uint32Array(c.getContext('2d')"
                ".getImageData(0, 0, c.width, c.height).data.buffer)).size"
            )
            assert colours > 20, name
        else:
            marks = "g[class*='mark-'][class*='role-mark'] > path"
            assert len(chart.query_selector_all(marks)) > 0, name


def test_pointing_at_a_mark_tells_the_language(report, open_page):
    page = open_page(report)
    mark = "[data-chart='map-of-languages'] g.mark-symbol.role-mark path"
    page.locator(mark).first.scroll_into_view_if_needed()
    page.locator(mark).first.hover()
    tooltip = page.wait_for_selector("#vg-tooltip-element.visible")
    text = tooltip.inner_text()
    assert all(word in text for word in ("eng", "English", "Indo-European"))
    mark = "[data-chart='retrieval-bible'] g.mark-symbol.role-mark path"
    page.locator(mark).last.scroll_into_view_if_needed()
    page.locator(mark).last.hover(force=True)
    page.wait_for_function(
        "document.querySelector('#vg-tooltip-element.visible')?.innerText.includes('ckb_Arab')"
    )


def test_it_turns_dark_with_the_device(report, open_page):
    page = open_page(report)
    label = "[data-chart='loss'] .role-axis-label text"

    def colour():
        return page.locator(label).first.get_attribute("fill")

    before = colour()
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "before => document.querySelector(\"[data-chart='donors'] .role-axis-label text\")"
        "?.getAttribute('fill') !== before",
        arg=before,
    )
    assert colour() != before
    drawn = page.query_selector_all("[data-chart] > svg, [data-chart] > canvas")
    assert len(drawn) == len(FIGURES)


def test_names_that_are_markup_are_shown_as_they_are(new_run, log, evaluate, open_page, tmp_path):
    run = new_run(tmp_path / "<b>run")
    log(run, range(1, 11), HOSTILE)
    evaluate(run, HOSTILE)
    page = open_page(write_report(run))
    assert page.evaluate("window.owned") is None
    assert page.query_selector("img, h1 b") is None
    assert page.inner_text("h1") == "<b>run"
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    text = page.inner_text("main")
    assert all(name in text for name in HOSTILE)
    mark = page.locator("[data-chart='validation-loss'] g.mark-symbol.role-mark path").last
    mark.hover(force=True)
    tooltip = page.wait_for_selector("#vg-tooltip-element.visible")
    assert any(name in tooltip.inner_text() for name in HOSTILE)
    assert page.evaluate("window.owned") is None


def test_a_run_that_has_not_begun_is_a_page(new_run, open_page, tmp_path):
    page = open_page(write_report(new_run(tmp_path / "run")), "phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.inner_text("#absent h2") == "Not here yet"
