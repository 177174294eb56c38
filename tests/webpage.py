"""The web page's tests, in its users' terms."""

from __future__ import annotations

from images import draw_scene, encode
from playwright.sync_api import FilePayload, Locator, Page


def photo(name: str = "scene.png", *, size: tuple[int, int] = (120, 80), format: str = "PNG") -> FilePayload:
    return {"name": name, "mimeType": f"image/{format.lower()}", "buffer": encode(draw_scene(*size), format)}


def add(page: Page, *photos: FilePayload) -> Locator:
    """Pick photos; the cards of all that are on the page."""
    page.set_input_files("#picker", list(photos))
    return page.locator("article")


def word(page: Page, text: str) -> Locator:
    return page.get_by_role("button", name=f"{text}, ")
