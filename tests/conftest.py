"""What several test files share: a photograph, a caption of it, and a browser."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

_HF_HOME = tempfile.TemporaryDirectory(prefix="captioner-hub-")
os.environ["HF_HOME"] = _HF_HOME.name  # read once, at import: no test sees or changes the user's cache

CHROMIUM_FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
]


@pytest.fixture
def photo_path(tmp_path: Path) -> Path:
    """A JPEG of 120 × 80 pixels: a red ball on a lawn."""
    image = Image.new("RGB", (120, 80), "skyblue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 50, 120, 80), fill="forestgreen")
    draw.ellipse((70, 30, 100, 60), fill="crimson")
    path = tmp_path / "ball.jpg"
    image.save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium.

    One a module, not a session: while Playwright runs, its event loop keeps asyncio tests from running.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine; install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own profile; the test fails if it logs an error, such as a breach of its policy."""
    context = browser.new_context(has_touch=True)
    page = context.new_page()
    errors: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        if _is_error(message):
            errors.append(f"{message.text} {message.location['url']}")

    page.on("console", logged)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def _is_error(message: ConsoleMessage) -> bool:
    """Not that the API refuses, or is gone: browsers log it although the page deals with it."""
    return message.type == "error" and not re.search("/v1/|/readyz$", message.location["url"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
