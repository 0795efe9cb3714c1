"""The HTML report in Debian's Chromium: it renders, sorts, filters, copies, prints, and runs nobody else's script.

Where there is no Chromium the tests are skipped; with QUANT_REQUIRE_BROWSER=1, as in CI, they fail.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from quant.reports.page import render
from quant.results.record import Failure
from tests import runs
from tests.unit.test_html_report import HOSTILE, contrast, hostile_run, hostile_sections, past, sections

CHROMIUM = shutil.which("chromium")
PHONE = {"width": 360, "height": 740}
LONG = "/models/of/a/place/that/is/far/below/the/root/resnet50/int8"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("QUANT_REQUIRE_BROWSER") == "1":
            pytest.fail("no `chromium` on this machine, and QUANT_REQUIRE_BROWSER=1 demands it")
        pytest.skip("no `chromium` on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)  # without its sandbox, which root can't have
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages by name -> their addresses."""
    place = tmp_path_factory.mktemp("pages")
    run = runs.suite_run(["resnet50", "mobilenet_v2", "gru"])
    run = replace(run, records=(*run.records, *runs.speed("mobilenet_v2", 1.0)))  # one that fails
    lost = Failure("Own", "own/int8: died of SIGSEGV", ("oneDNN v3", "a line of the log " * 20)), Failure("Two", "no")
    pages = {
        "suite": render.render(run, past()),
        "hostile": render.render(hostile_run(), (), hostile_sections()),
        "more": render.render(replace(run, failures=lost, passed=False), (), [*sections(), *sections(title=LONG)]),
    }
    for name, text in pages.items():
        (place / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (place / f"{name}.html").as_uri() for name in pages}


class Shown:
    """Opens pages, and keeps what the browser complained of or asked for."""

    def __init__(self, browser: Browser, files: dict[str, str]) -> None:
        self.browser, self.files = browser, files
        self.contexts: list[BrowserContext] = []
        self.said: list[str] = []
        self.asked: list[str] = []

    def __call__(self, name: str = "suite", fragment: str = "", **how: object) -> Page:
        context = self.browser.new_context(**how)  # type: ignore[arg-type]
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(self.files[name] + fragment)
        return page


@pytest.fixture
def show(browser: Browser, files: dict[str, str]) -> Iterator[Shown]:
    """A page, by name; whatever a test does, the browser has nothing to complain of and asks for nothing else."""
    shown = Shown(browser, files)
    yield shown
    for context in shown.contexts:
        context.close()
    assert shown.said == []
    assert {url.partition("#")[0] for url in shown.asked} <= {*files.values(), "data:,"}


def column(page: Page, table: str, title: str) -> list[str]:
    """The texts of a column, of the rows that are shown."""
    titles = page.locator(f"#{table} thead th").all_inner_texts()
    place = [text.strip() for text in titles].index(title) + 1
    return page.locator(f"#{table} tbody tr:visible > :nth-child({place})").all_inner_texts()


# --- what it looks like


def test_it_renders(show: Shown) -> None:
    page = show()
    expect(page).to_have_title("PASSED: INT8 report")
    assert page.locator("h2").first.inner_text().endswith("PASSED")
    assert page.locator("svg[role=img]").count() >= 7
    for drawing in page.locator("#accuracy svg, #speed svg").all():
        box = drawing.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 100
        assert drawing.locator("text").count() > 3
    assert column(page, "speed-table", "Result").count("✗ failed") == 1


def test_links_open_a_models_part(show: Shown) -> None:
    page = show()
    page.locator("#accuracy-table a", has_text="MobileNet-V2").first.click()
    assert page.locator("details[open]").count() == 1
    expect(page.locator("details[open] h3")).to_have_text("MobileNet-V2")
    expect(page.locator("#model-2")).to_be_in_viewport()
    assert show(fragment="#model-3").locator("details[open] h3").inner_text() == "GRU (LAC)"


@pytest.mark.parametrize("name", ["suite", "hostile", "more"])
def test_a_phone_scrolls_tables_and_not_the_page(show: Shown, name: str) -> None:
    page = show(name, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    region = page.locator("#accuracy .scroll")
    assert region.evaluate("(element) => element.scrollWidth > element.clientWidth")
    region.focus()
    page.keyboard.press("ArrowRight")
    deadline = time.monotonic() + 10  # it scrolls smoothly
    while not region.evaluate("(element) => element.scrollLeft") and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert region.evaluate("(element) => element.scrollLeft") > 0
    first = page.locator("#accuracy-table tbody th").first.bounding_box()
    assert first is not None and first["x"] >= 0  # the name of the row stays


def colour(page: Page, selector: str, what: str) -> str:
    """A computed colour as #rrggbb."""
    found = page.locator(selector).first.evaluate(f"(element) => getComputedStyle(element)['{what}']")
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", found)[:3])


def test_light_and_dark(show: Shown) -> None:
    pages = {scheme: show(color_scheme=scheme) for scheme in ("light", "dark")}
    grounds = {scheme: colour(page, "body", "background-color") for scheme, page in pages.items()}
    assert contrast(grounds["light"], "#000000") > 15 and contrast(grounds["dark"], "#ffffff") > 15
    assert pages["light"].screenshot() != pages["dark"].screenshot()
    for scheme, page in pages.items():
        assert contrast(colour(page, "body", "color"), grounds[scheme]) >= 4.5
        for text in ("svg text", ".facts span", "thead th", ".result", "header p", "#accuracy a"):
            what = "fill" if "svg" in text else "color"
            assert contrast(colour(page, text, what), colour(page, ".scroll", "background-color")) >= 4.5, text


@pytest.mark.parametrize("name", ["suite", "more"])
def test_paper_has_everything_and_no_buttons(show: Shown, name: str) -> None:
    page = show(name, color_scheme="dark")
    page.emulate_media(media="print")
    assert colour(page, "body", "background-color") == "#ffffff" and colour(page, "body", "color") == "#000000"
    for log in page.locator("details pre").all():
        assert log.is_visible()
        assert log.evaluate("(element) => element.scrollWidth <= element.clientWidth"), "cut off"
    for part in page.locator("details .inside").all():
        assert part.is_visible() and (part.bounding_box() or {})["height"] > 100
    assert page.locator(".tools:visible, .command button:visible, nav:visible").count() == 0
    page.set_viewport_size({"width": 1032, "height": 730})  # A4, landscape, less its margins
    for table in page.locator("table, pre").all():
        box = table.bounding_box()
        assert box is not None and box["x"] + box["width"] <= 1032, "cut off"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert page.locator("details[open]").count() == 0  # as they were


def test_it_is_all_there_without_javascript(show: Shown) -> None:
    page = show(java_script_enabled=False)
    assert page.locator("#accuracy-table tbody tr").count() == len(column(page, "accuracy-table", "Result"))
    assert page.locator("button:visible, .tools:visible").count() == 0
    page.locator("summary").first.click()
    expect(page.locator("details[open] code").last).to_have_text("quant suite --model resnet50")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_models_that_could_not_be_measured(show: Shown, scheme: str) -> None:
    page = show("more", color_scheme=scheme, java_script_enabled=False, viewport=PHONE)
    assert page.locator("#failures h3").all_inner_texts() == ["✗ Own", "✗ Two"]
    log = page.locator("#failures pre")
    assert log.count() == 1 and not log.is_visible()
    page.locator("#failures summary").click()
    expect(log).to_contain_text("oneDNN v3")
    assert log.inner_text().splitlines()[0] == "oneDNN v3"
    assert log.evaluate("(element) => element.scrollWidth > element.clientWidth")  # it scrolls, not the page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for text in ("#failures summary", "#failures pre", "#failures h3"):
        assert contrast(colour(page, text, "color"), colour(page, "body", "background-color")) >= 4.5


def test_what_analyze_and_tune_found(show: Shown) -> None:
    page = show("more")
    links = page.locator("nav a", has_text="ResNet-50")
    assert links.all_inner_texts() == ["Why accuracy drops: ResNet-50", "Accuracy and latency: ResNet-50"]
    links.last.click()
    expect(page.locator("#section-2 h2")).to_be_in_viewport()
    for drawing in page.locator("#section-1 svg, #section-2 svg").all():
        box = drawing.bounding_box()
        assert box is not None and box["width"] > 200 and box["height"] > 100
    assert page.locator("#section-2 svg[role=img] title").inner_html().startswith("Drop over speed of 4 INT8 models;")
    ops = "section-1-table-2"
    page.locator(f"#{ops} thead button", has_text="To FP32 dB").click()
    shown = [float(text) for text in column(page, ops, "To FP32 dB")]
    assert shown == sorted(shown) and len(shown) == 20
    page.locator(f"#{ops} thead button", has_text="Own error dB").click()
    assert column(page, ops, "Own error dB")[-1] == "not asked for"  # what has no figure comes last
    assert page.locator("#section-2 .tools").count() == 0


# --- what one can do with it


def test_sorting_by_click(show: Shown) -> None:
    page = show()
    head = page.locator("#speed-table thead th", has_text="FP32 / INT8")
    before = column(page, "speed-table", "FP32 / INT8")
    head.locator("button").click()
    up = column(page, "speed-table", "FP32 / INT8")
    assert up != before and up == sorted(before, key=float)
    expect(head).to_have_attribute("aria-sort", "ascending")
    head.locator("button").click()
    assert column(page, "speed-table", "FP32 / INT8") == sorted(before, key=float, reverse=True)
    expect(head).to_have_attribute("aria-sort", "descending")
    page.locator("#speed-table thead th", has_text="Model").locator("button").click()
    assert page.locator("#speed-table [aria-sort]").count() == 1


def test_numbers_sort_as_numbers_and_rows_without_one_come_last(show: Shown) -> None:
    page = show()
    for _ in range(2):
        page.locator("#speed-table thead button", has_text="FP32, ms").click()
    shown = [float(text) for text in column(page, "speed-table", "FP32, ms")]
    assert shown == sorted(shown, reverse=True) and shown != sorted(shown, key=str, reverse=True)
    for _ in range(2):
        page.locator("#speed-table thead button", has_text="Seeds").click()
        seeds = column(page, "speed-table", "Seeds")
        assert "-" not in seeds[: seeds.index("-")] and set(seeds[seeds.index("-") :]) == {"-"}


def test_sorting_is_stable(show: Shown) -> None:
    page = show()
    for title in ("Model", "ISA"):
        page.locator("#accuracy-table thead button", has_text=title).click()
    rows = list(zip(column(page, "accuracy-table", "ISA"), column(page, "accuracy-table", "Model"), strict=True))
    assert rows == sorted(rows)


def test_sorting_by_keyboard(show: Shown) -> None:
    page = show()
    page.locator("#accuracy .tools select").focus()
    page.keyboard.press("Tab")  # the region, which scrolls
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Model"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, direction in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        expect(page.locator("#accuracy-table thead th").first).to_have_attribute("aria-sort", direction)
    assert page.evaluate("document.activeElement.textContent") == "Model"  # focus stays


def test_filtering(show: Shown) -> None:
    page = show()
    tools = page.locator("#speed .tools")
    everything = len(column(page, "speed-table", "Model"))
    tools.get_by_label("Filter").fill("mobilenet AVX2")
    assert column(page, "speed-table", "ISA") == ["avx2"]
    expect(tools.locator("output")).to_have_text(f"1 of {everything} rows")
    expect(tools.locator("output")).to_have_attribute("aria-live", "polite")
    tools.get_by_label("Filter").fill("")
    tools.get_by_label("Result").select_option("missed or failed")
    assert column(page, "speed-table", "Result") == ["✗ failed"]
    tools.get_by_label("Filter").fill("no such model")
    expect(tools.locator("output")).to_have_text(f"0 of {everything} rows")
    assert len(column(page, "accuracy-table", "Model")) > 0  # the other table's rows are its own


@pytest.mark.parametrize("allowed", [True, False])
def test_copying_a_command_by_keyboard(show: Shown, allowed: bool) -> None:
    page = show("hostile", permissions=["clipboard-read", "clipboard-write"] if allowed else [])
    if not allowed:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    button = page.locator("#reproduce .command button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_text("Copied" if allowed else "Selected")
    code = page.locator("#reproduce .command code").nth(1).inner_text()
    assert code.endswith("--model '<script>alert(1)</script>'")
    found = "navigator.clipboard.readText()" if allowed else "String(getSelection())"
    assert page.evaluate(found).strip() == code
    assert code in page.locator("[role=status]").inner_text()


def test_keyboard_reaches_the_report_first(show: Shown) -> None:
    page = show()
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    expect(skip).to_have_text("Skip to the report")
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1


# --- what nobody can do with it


def test_hostile_names_stay_text(show: Shown) -> None:
    page = show("hostile")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for name, found in zip(HOSTILE[:3], page.locator("details h3").all_inner_texts(), strict=False):
        assert found == " ".join(name.split())
    for table in ("accuracy-table", "speed-table"):
        assert HOSTILE[0] in column(page, table, "Model")
        page.locator(f"#{table} thead button").first.click()  # what was text stays it when rows move
    for drawing in page.locator("#accuracy svg, #speed svg").all():
        assert any(text.startswith("<script>") for text in drawing.locator("text").all_text_contents())
        assert "<script>alert(1)</script>" in drawing.locator("title").text_content()  # type: ignore[operator]
    for name, found in zip(HOSTILE[:3], page.locator("#failures h3").all_inner_texts(), strict=False):
        assert found == f"✗ {' '.join(name.split())}"
    assert page.locator("#failures pre").first.inner_text().startswith(HOSTILE[0])
    for number, name in enumerate(HOSTILE[:3]):
        why, tuned = (page.locator(f"#section-{2 * number + place}") for place in (1, 2))
        assert why.locator("h2").inner_text() == f"Why accuracy drops: {name}"
        assert f"Worst: {name} doesn't do what the simulation does" in why.inner_text()
        assert f"{name} otherwise" not in tuned.inner_text() and f"INT8 by {name}" in tuned.inner_text()
        assert name in tuned.locator("thead").inner_text()
    assert page.locator("img, iframe, object, script").count() == 1
    handlers = "(all) => all.filter((one) => [...one.attributes].some((a) => a.name.startsWith('on'))).length"
    assert page.locator("*").evaluate_all(handlers) == 0


def test_a_script_that_got_in_would_not_run(browser: Browser, files: dict[str, str], tmp_path: Path) -> None:
    """The policy is the second wall: neither a foreign script nor a request leaves the page."""
    text = Path(files["suite"].removeprefix("file://")).read_text(encoding="utf-8")
    bad = '<script>window.broken = 1</script><img src="http://127.0.0.1:9/x.png" onerror="window.broken = 2">'
    (tmp_path / "bad.html").write_text(text.replace("</main>", f"{bad}</main>"), encoding="utf-8")
    page = browser.new_page()
    failed: list[str] = []
    page.on("console", lambda message: failed.append(message.text))
    page.goto((tmp_path / "bad.html").as_uri())
    assert page.evaluate("window.broken") is None
    assert len([line for line in failed if "Content Security Policy" in line]) >= 2
    page.close()
