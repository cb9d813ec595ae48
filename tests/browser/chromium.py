"""Debian's Chromium by way of its driver: pages of a file, at a size, in a theme, with scripts or without."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = Path(os.environ.get("WIRELORE_SCREENSHOTS", ROOT / "build" / "screenshots"))
A4 = (718, 1047)
"""What A4 leaves between margins of 10 mm, in CSS pixels of 1/96 inch."""
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "print": A4}


@dataclass(frozen=True, slots=True)
class View:
    """How a page is looked at."""

    size: str
    theme: str
    scripts: bool = True

    @property
    def name(self) -> str:
        return f"{self.size}-{self.theme}" + ("" if self.scripts else "-without-scripts")


def axe_script() -> str:
    """axe-core (Deque), which a package brings along; of that package nothing else is used."""
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-core is not installed (`make browser` does it): NOTHING is tested for accessibility")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text("utf-8")


class Chromium:
    """One browser for all tests of a run."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, view: View) -> None:
        width, height = SIZES[view.size]
        media = "print" if view.size == "print" else "screen"
        theme = {"name": "prefers-color-scheme", "value": view.theme}
        self._tell("Emulation.setScriptExecutionDisabled", value=not view.scripts)
        self._tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._tell("Emulation.setEmulatedMedia", media=media, features=[theme])
        self.driver.get(page.as_uri())

    def width(self) -> int:
        """Of all that the page holds, in CSS pixels."""
        return int(self._tell("Page.getLayoutMetrics")["cssContentSize"]["width"])

    def said(self) -> list[str]:
        """What the console holds since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def violations(self, axe: str) -> list[str]:
        """What axe-core holds against the page, all rules and best practices counted."""
        self.run(axe)
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {resultTypes: ['violations']})"
            ".then((told) => done(told.violations), (error) => done([String(error)]));"
        )
        return [
            f"{v['id']}: {v['help']}: {[n['html'][:160] for n in v['nodes'][:3]]}" if isinstance(v, dict) else str(v)
            for v in found
        ]

    def save_picture(self, name: str) -> None:
        """The whole page as one picture, in parts that a person can look at."""
        size = self._tell("Page.getLayoutMetrics")["cssContentSize"]
        PICTURES.mkdir(parents=True, exist_ok=True)
        step = 2000
        for number, y in enumerate(range(0, min(int(size["height"]), 9 * step), step)):
            clip = {"x": 0, "y": y, "width": size["width"], "height": min(step, size["height"] - y), "scale": 1}
            told = self._tell("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
            (PICTURES / f"{name}-{number}.png").write_bytes(base64.b64decode(told["data"]))

    def save_pdf(self, name: str) -> bytes:
        self._tell("Emulation.setEmulatedMedia", media="")
        told = self._tell("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        pdf = base64.b64decode(told["data"])
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / f"{name}.pdf").write_bytes(pdf)
        return pdf

    def downloads_to(self, folder: Path) -> None:
        self._tell("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def _tell(self, command: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(command, json.loads(json.dumps(parameters)))


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser without a window. Skips aloud where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip(
            "no Chromium or no chromedriver here (scripts/install-system-packages browser): NOTHING of the page is "
            "looked at"
        )
    if find_spec("selenium") is None:
        pytest.skip("selenium is not installed (`make browser` does it): NOTHING of the page is looked at")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        started.set_script_timeout(60)
        yield Chromium(started)
    finally:
        started.quit()
