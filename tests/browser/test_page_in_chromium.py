"""The page in a real browser: at each size, in both themes, with scripts and without, and for who sees no picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from audits import audited, findings, measured
from chromium import SIZES, Chromium, View, axe_script, chromium

from configgen.audited import Audited
from configgen.report.html import page
from probe.measurement import Survey
from probe.sources.machines import machine
from probe.store import decode_survey

LONG = "a-node-whose-name-" + "never-ends-" * 20
VIEWS = [View(*view) for view in itertools.product(SIZES, ("light", "dark"), (True, False))]


def whole() -> Audited:
    return audited()


def pcie() -> Audited:
    return audited(measured("l40s-8"))


def unmeasured() -> Audited:
    survey = Survey(machine("a100-pcie-pairs-8"))
    return Audited(survey, findings(survey.topology)[1:], "2026-11-21T04:00:00+00:00")


def good() -> Audited:
    return Audited(measured("3090-bridges-4", slow=None), (), "2026-11-21T04:00:00+00:00")


def cluster() -> Audited:
    return audited(measured("4xl40s-8", every_pair=False, times=4), planned=False, baseline=False)


def rude() -> Audited:
    """Texts as long as they come, without a blank to break them at."""
    survey = measured("l40s-8", every_pair=False, times=4)
    node = survey.topology.nodes[0]
    gpus = tuple(replace(gpu, name=LONG) for gpu in node.shape.gpus)
    node = replace(node, hostname=LONG, driver_version=LONG, shape=replace(node.shape, gpus=gpus))
    found = tuple(replace(f, seen=LONG, cure=LONG, expected=LONG, source=LONG) for f in findings(survey.topology))
    topology = replace(survey.topology, nodes=(node,))
    return Audited(replace(survey, topology=topology, lab=LONG), found, "2026-11-21T04:00:00+00:00")


PAGES = {told.__name__: told for told in (whole, pcie, unmeasured, good, cluster, rude)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def axe() -> str:
    return axe_script()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name, told in PAGES.items():
        written[name] = folder / f"{name}.html"
        written[name].write_text(page(told()), "utf-8")
    return written


each_page = pytest.mark.parametrize("name", PAGES)
each_view = pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
each_theme = pytest.mark.parametrize("theme", ("light", "dark"))


@each_page
@each_view
def test_nothing_overflows_and_the_console_stays_empty(
    browser: Chromium, pages: dict[str, Path], name: str, view: View
) -> None:
    browser.said()
    browser.open(pages[name], view)
    if view.scripts or view.theme == "light":
        browser.save_picture(f"{name}-{view.name}")
    assert browser.width() <= SIZES[view.size][0], "nothing is wider than the page"
    assert browser.said() == []


@pytest.mark.parametrize("name", [name for name in PAGES if name != "pcie"])  # the same elements as the whole
@each_theme
@pytest.mark.parametrize("size", ("phone", "laptop"))
def test_axe_has_nothing_against_it(
    browser: Chromium, pages: dict[str, Path], axe: str, name: str, theme: str, size: str
) -> None:
    browser.open(pages[name], View(size, theme))
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; });")
    browser.run("document.getElementById('survey').textContent = '{}';")  # half a megabyte of text tells axe nothing
    assert browser.violations(axe) == []


PALE = """
const luminance = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
  return 'rgb(255, 255, 255)';
};
const pale = [];
for (const [selector, property, least] of arguments[0]) {
  const found = document.querySelectorAll(selector);
  if (!found.length) pale.push(`${selector}: there is none`);
  for (const element of found) {
    const [a, b] = [luminance(getComputedStyle(element)[property]), luminance(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) pale.push(`${selector}: ${contrast.toFixed(2)}`);
  }
}
return [...new Set(pale)];
"""


@each_theme
@pytest.mark.parametrize("size", ("laptop", "print"))
def test_what_is_drawn_has_contrast(browser: Chromium, pages: dict[str, Path], theme: str, size: str) -> None:
    """axe looks at texts of HTML alone; WCAG 2.2 asks 4.5:1 of text (1.4.3) and 3:1 of what is drawn (1.4.11)."""
    browser.open(pages["whole"], View(size, theme))
    drawn = [[".trace > polyline:not(.other)", "stroke", 3], [".gauge .fill", "fill", 3], [".mark", "fill", 3]]
    texts = [[".grid text", "fill", 4.5], [".wl text", "fill", 4.5]]
    assert browser.run(PALE, [*texts, *drawn]) == []


@pytest.mark.parametrize("system", ("light", "dark"))
def test_the_theme_can_be_chosen_against_the_systems(browser: Chromium, pages: dict[str, Path], system: str) -> None:
    browser.open(pages["whole"], View("laptop", system))
    ground = (
        "const ink = getComputedStyle(document.querySelector('.wl text')).fill;"
        "return [getComputedStyle(document.body).backgroundColor, ink]"
    )
    seen = {}
    for theme in ("auto", "light", "dark"):
        browser.run("document.querySelector(`[name=theme][value=${arguments[0]}]`).click()", theme)
        seen[theme] = browser.run(ground)
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True)), "the picture too"
    assert seen["auto"] == seen[system]


def test_without_scripts_nothing_is_offered_that_needs_one(browser: Chromium, pages: dict[str, Path]) -> None:
    shown = "return [...document.querySelectorAll('.theme, #save, .unscripted')].map((e) => e.checkVisibility())"
    opened = "document.querySelectorAll('details').forEach((d) => { d.open = true; });"
    browser.open(pages["whole"], View("laptop", "light", scripts=False))
    browser.run(opened)
    assert browser.run(shown) == [False, False, True]
    data = "return document.getElementById('survey').checkVisibility()"
    assert browser.run(data), "the data can be read and copied"
    browser.open(pages["whole"], View("laptop", "light"))
    browser.run(opened)
    assert browser.run(shown) == [True, True, False]


def test_the_data_is_saved_as_a_survey(browser: Chromium, pages: dict[str, Path], tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.open(pages["whole"], View("laptop", "light"))
    browser.downloads_to(tmp_path)
    browser.run("document.querySelector('.raw').open = true; document.getElementById('save').click();")
    saved = tmp_path / "survey.json"
    WebDriverWait(browser.driver, 20).until(lambda _: saved.exists())
    assert len(decode_survey(saved.read_bytes(), where="saved").curves) == len(audited().survey.curves)


def test_a_chart_tells_what_is_under_the_pointer(browser: Chromium, pages: dict[str, Path]) -> None:
    browser.open(pages["whole"], View("laptop", "light"))
    point = "const p = document.querySelectorAll('.chart use')[3]; const b = p.getBoundingClientRect();"
    scrolled = "document.querySelector('.chart').scrollIntoView({behavior: 'instant'});"
    move = (
        "p.ownerSVGElement.dispatchEvent(new PointerEvent('pointermove', "
        "{clientX: b.x + b.width / 2, clientY: b.y + b.height / 2}));"
    )
    told = browser.run(f"{scrolled} {point} {move} return document.querySelector('.chart output').textContent")
    assert "8 KiB" in told
    assert "GB/s" in told


@each_page
def test_it_prints(browser: Chromium, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], View("laptop", "dark"))
    pdf = browser.save_pdf(f"{name}-printed")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 40
