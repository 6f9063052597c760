"""The page in a real browser: drawn, selectable, readable, and silent towards the network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from contrast import contrast
from made_runs import HOSTILE, LAYERS, diagnosed, history, run
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from sdslora.studies.report.page import page
from sdslora.studies.report.runs import read

pytestmark = pytest.mark.browser

NAMES = [HOSTILE, *LAYERS]
CHARTS = ["loss", "learning_rate", "means", "layers"]
Open = Callable[..., Chrome]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs, whose names and layers are as hostile as a file system allows."""
    folder = tmp_path_factory.mktemp("page")
    first = diagnosed(run(folder / HOSTILE.replace("/", "|"), error=HOSTILE), layers=NAMES)
    second = run(folder / "second", log_history=history(60))
    diagnosed(second, range(5, 101, 5), NAMES)
    (first / "diagnostics.jsonl").open("a").write('{"step": 11')  # killed
    file = folder / "report.html"
    file.write_text(page(read([first, second]), ["log"]), encoding="utf-8")
    return file


@pytest.fixture
def show(chromium: Chrome) -> Open:
    """Open a file at a width and in a colour scheme, and wait for its charts."""

    def opened(file: Path, width: int = 1280, scheme: str = "light") -> Chrome:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for log in ("browser", "performance"):
            chromium.get_log(log)  # of earlier pages
        chromium.get(file.as_uri())
        WebDriverWait(chromium, 60).until(lambda _: len(drawn(chromium)) == len(CHARTS))
        return chromium

    return opened


def drawn(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, ".chart svg")


def marks(browser: Chrome, chart: str, kind: str, attribute: str) -> list[str]:
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(m => m.getAttribute(arguments[1]))"
    )
    return browser.execute_script(script, f"#{chart} .{kind} path", attribute)


def select(browser: Chrome, chart: str, place: int = 0) -> Select:
    return Select(browser.find_elements(By.CSS_SELECTOR, f"#{chart}-controls select")[place])


def test_all_charts_are_drawn(show: Open, written: Path) -> None:
    browser = show(written)
    assert [c.get_attribute("id") for c in browser.find_elements(By.CLASS_NAME, "chart")] == CHARTS
    for chart in drawn(browser):
        assert chart.size["width"] > 900
        assert chart.size["height"] > 100
    assert len(set(marks(browser, "layers", "cells_marks", "fill"))) > 10
    assert len(marks(browser, "layers", "cells_marks", "fill")) == 10 * len(NAMES)
    lines = [d for d in marks(browser, "loss", "mark-line", "d") if d]
    assert len(lines) == 4, "training and evaluation, of two runs"


def test_nothing_is_fetched_and_nothing_goes_wrong(show: Open, written: Path) -> None:
    browser = show(written)
    for cell in browser.find_elements(By.CSS_SELECTOR, "#layers .cells_marks path")[:1]:
        ActionChains(browser).move_to_element(cell).perform()
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert requests == [written.as_uri()]


def test_names_from_files_are_text(show: Open, written: Path) -> None:
    browser = show(written)
    first = browser.find_element(By.CSS_SELECTOR, "#layers .cells_marks path")
    ActionChains(browser).move_to_element(first).perform()
    shown = WebDriverWait(browser, 10).until(
        lambda _: browser.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible").text
    )
    assert HOSTILE in shown
    assert HOSTILE.replace("/", "|") in browser.find_element(By.TAG_NAME, "h1").text
    assert HOSTILE.replace("/", "|") in [o.text for o in select(browser, "layers", 1).options]
    assert browser.execute_script("return document.images.length") == 0
    # the library, and the page's own
    assert browser.execute_script("return document.scripts.length") == 2


@pytest.mark.parametrize(
    ("chart", "kind", "attribute"), [("layers", "cells_marks", "fill"), ("means", "mark-line", "d")]
)
def test_another_measure_is_drawn(
    show: Open, written: Path, chart: str, kind: str, attribute: str
) -> None:
    browser = show(written)
    before = marks(browser, chart, kind, attribute)
    assert before
    select(browser, chart).select_by_visible_text("Effective rank: gradient of B")
    WebDriverWait(browser, 10).until(lambda _: marks(browser, chart, kind, attribute) != before)
    assert len(marks(browser, chart, kind, attribute)) == len(before)
    # one measured in a part of the layers only, reached by the keyboard
    control = browser.find_element(By.CSS_SELECTOR, f"#{chart}-controls select")
    control.send_keys(Keys.END)
    assert select(browser, chart).first_selected_option.text == "Drift: relative change of ΔW"
    count = 9 * len(NAMES) if chart == "layers" else len(before)
    WebDriverWait(browser, 10).until(lambda _: len(marks(browser, chart, kind, "d")) == count)


def test_another_run_is_drawn(show: Open, written: Path) -> None:
    browser = show(written)
    before = marks(browser, "layers", "cells_marks", "d")
    select(browser, "layers", 1).select_by_visible_text("second")
    WebDriverWait(browser, 10).until(
        lambda _: len(marks(browser, "layers", "cells_marks", "d")) == 2 * len(before)
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_without_scrolling_sideways(
    show: Open, written: Path, scheme: str
) -> None:
    browser = show(written, 390, scheme)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert all(300 < chart.size["width"] <= 390 for chart in drawn(browser))


@pytest.mark.parametrize(
    ("scheme", "page_colour"), [("light", (255, 255, 255)), ("dark", (20, 24, 29))]
)
def test_charts_follow_the_colour_scheme(
    show: Open, written: Path, scheme: str, page_colour: tuple[int, ...]
) -> None:
    browser = show(written, scheme=scheme)
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"

    def colour(selector: str, name: str) -> tuple[int, ...]:
        text = browser.execute_script(script, selector, name)
        return tuple(int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3])

    assert colour("body", "backgroundColor") == page_colour
    assert contrast(colour("#loss .role-axis-label text", "fill"), page_colour) >= 4.5
    assert contrast(colour("#loss .mark-line path", "stroke"), page_colour) >= 3
    assert contrast(colour("figcaption", "color"), page_colour) >= 4.5
    assert contrast(colour("select", "borderTopColor"), page_colour) >= 3


def test_a_long_run_stays_small_and_opens_quickly(show: Open, tmp_path: Path) -> None:
    """100,000 steps, and more diagnostics than the page may show."""
    long = run(tmp_path / "long", 100_000, log_history=history(100_000, every=1))
    layers = [f"model.layers.{n}.self_attn.q_proj" for n in range(60)]
    diagnosed(long, range(200, 100_001, 200), layers)
    runs = read([long])
    file = tmp_path / "report.html"
    file.write_text(page(runs, []), encoding="utf-8")
    assert file.stat().st_size < 5_000_000
    browser = show(file)
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    show(file)
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    # the page's own processor time: what it takes on a machine that is not busy otherwise
    assert {m["name"]: m["value"] for m in metrics}["ThreadTime"] < 2
    captions = [c.text for c in browser.find_elements(By.TAG_NAME, "figcaption")]
    assert "1,001 of 100,001 points are drawn" in captions[0]
    assert "of 45,6" in captions[0], "refreshes"
    assert "24,000 cells of 30,000 records" in captions[3]
