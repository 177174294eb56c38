"""What several test files share: a photograph, a caption of it, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from playwright.sync_api import Page

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


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a real Chromium; the test fails if the page logs an error, such as a breach of its policy.

    One browser a test, not a session: while Playwright runs, its event loop keeps asyncio tests from running.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine; install Debian's package chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        page = browser.new_context(has_touch=True).new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert errors == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "page" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
