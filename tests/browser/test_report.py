"""The gallery in a real browser: searched, sorted, lit, and no heavier for thousands of photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import make_caption
from images import draw_scene, encode

from captioner.report import Entry, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHOTO = encode(draw_scene(300, 200), "JPEG")
HOSTILE = "z<img src=x onerror=\"document.title='broken'\">.jpg"
PHOTOS = {
    "IMG_10.jpg": ("a dog runs", 0.3),
    "IMG_9.jpg": ("the cat sleeps", 0.9),
    "Café.jpg": ("two cups on a table", 0.6),
    HOSTILE: ("a beach", 0.1),
}
AS_CAPTIONED = ["IMG_10.jpg", "IMG_9.jpg", "bad.jpg", "Café.jpg", HOSTILE]


def entry(file: str, text: str, confidence: float) -> Entry:
    caption = make_caption(text, width=300, height=200, file=file)
    return PHOTO, replace(caption, confidence=confidence).to_dict()


@pytest.fixture
def gallery(tmp_path: Path, page: Page) -> Page:
    """Four captioned photographs and, between them, one that failed."""
    entries = [entry(file, text, confidence) for file, (text, confidence) in PHOTOS.items()]
    entries.insert(2, (b"", {"file": "bad.jpg", "error": "is truncated or damaged"}))
    write_report(tmp_path / "gallery.html", entries)
    page.emulate_media(reduced_motion="reduce")
    page.goto((tmp_path / "gallery.html").as_uri())
    return page


def expect_names(page: Page, names: list[str]) -> None:
    """Wait until these photographs are on show, in this order."""
    from playwright.sync_api import expect

    expect(page.locator("article:not([hidden])")).to_have_count(len(names))
    expect(page.locator("article:not([hidden]) b")).to_have_text(names)


def opacity(page: Page, file: str) -> float:
    canvas = page.locator("article", has_text=file).locator(".photo canvas")
    return float(canvas.evaluate("canvas => getComputedStyle(canvas).opacity"))


def test_search_finds_names_captions_and_errors(gallery: Page):
    expect_names(gallery, AS_CAPTIONED)
    assert gallery.locator("#found").inner_text() == "5 photographs, 1 with an error"
    gallery.keyboard.press("/")
    for typed, found in {
        "DOG": ["IMG_10.jpg"],
        "cafe cups": ["Café.jpg"],
        "truncated": ["bad.jpg"],
        "<img": [HOSTILE],
        "img sleeps": ["IMG_9.jpg"],
    }.items():
        gallery.keyboard.press("Control+A")
        gallery.keyboard.type(typed)
        expect_names(gallery, found)
    assert gallery.locator("#found").inner_text() == "1 of 5 photographs"
    gallery.get_by_role("searchbox").fill("nothing of the kind")
    expect_names(gallery, [])
    assert gallery.get_by_text("Nothing here has all of these words.").is_visible()
    gallery.get_by_role("searchbox").fill("")
    expect_names(gallery, AS_CAPTIONED)
    assert gallery.title() == "Photographs and their captions"


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("by name", ["bad.jpg", "Café.jpg", "IMG_9.jpg", "IMG_10.jpg", HOSTILE]),
        ("by caption", [HOSTILE, "IMG_10.jpg", "IMG_9.jpg", "Café.jpg", "bad.jpg"]),
        ("least sure first", [HOSTILE, "IMG_10.jpg", "Café.jpg", "IMG_9.jpg", "bad.jpg"]),
        ("surest first", ["IMG_9.jpg", "Café.jpg", "IMG_10.jpg", HOSTILE, "bad.jpg"]),
        ("errors first", ["bad.jpg", "IMG_10.jpg", "IMG_9.jpg", "Café.jpg", HOSTILE]),
    ],
)
def test_sorting(order: str, names: list[str], gallery: Page):
    gallery.get_by_label("Sort").select_option(label=order)
    expect_names(gallery, names)
    gallery.get_by_label("Sort").select_option(label="as captioned")
    expect_names(gallery, AS_CAPTIONED)


def test_pointing_and_focusing_light_the_photo_of_the_word(gallery: Page):
    assert opacity(gallery, "IMG_9.jpg") == 0
    gallery.get_by_role("button", name="sleeps").hover()
    assert opacity(gallery, "IMG_9.jpg") > 0
    assert opacity(gallery, "IMG_10.jpg") == 0
    gallery.mouse.move(0, 0)
    assert opacity(gallery, "IMG_9.jpg") == 0
    gallery.get_by_label("Sort").focus()
    gallery.keyboard.press("Tab")
    gallery.keyboard.press("Tab")
    assert opacity(gallery, "IMG_10.jpg") > 0
    assert gallery.locator(".said").first.inner_text() == "dog: 50% confident"


def test_thousands_are_drawn_only_where_they_are_seen(page: Page, tmp_path: Path):
    write_report(tmp_path / "gallery.html", (entry(f"{n}.jpg", "a dog runs", 0.5) for n in range(3000)))
    page.goto((tmp_path / "gallery.html").as_uri())
    page.wait_for_selector("article img")
    assert page.locator("article").count() == 3000
    assert 0 < page.locator("figure").count() < 100
    page.locator("article").last.scroll_into_view_if_needed()
    page.get_by_text("2999.jpg").wait_for()
    page.wait_for_function("!document.querySelector('article').firstChild")
    assert 0 < page.locator("figure").count() < 100
    page.get_by_role("searchbox").fill("1234.jpg")
    page.get_by_text("1234.jpg").wait_for()
    expect_names(page, ["1234.jpg"])


def test_the_captions_of_several_models_light_the_same_photograph(tmp_path: Path, page: Page):
    one = make_caption("a dog", width=300, height=200, file="dog.jpg")
    coarse = ((0.0, 1.0), (0.0, 0.0))  # another model has another grid
    words = tuple(replace(word, attention=coarse, box=(150, 0, 300, 100)) for word in one.words)
    other = replace(one, model="other", caption="the wolf", words=(replace(words[0], text="wolf"),))
    record = {
        "file": "dog.jpg",
        "captions": [one.to_dict(), other.to_dict(), {"model": "third", "error": "no"}],
    }
    write_report(tmp_path / "page.html", [(PHOTO, record)])
    page.emulate_media(reduced_motion="reduce")
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator(".by").all_inner_texts() == ["fake · 50% confident", "other · 50% confident"]
    assert page.locator(".words").all_inner_texts() == ["a dog", "the wolf"]
    assert page.locator(".error").inner_text() == "third: no"

    def brightest() -> list[float]:
        """Where the map is brightest, in 0…1 across and down."""
        return page.evaluate(
            """() => {
                const canvas = document.querySelector(".photo canvas");
                const {data} = canvas.getContext("2d").getImageData(0, 0, 96, 96);
                let best = 0;
                for (let i = 0; i < data.length; i += 4) if (data[i] > data[best]) best = i;
                return [best / 4 % 96 / 96, Math.floor(best / 4 / 96) / 96];
            }"""
        )

    page.get_by_role("button", name="a", exact=True).hover()
    first = brightest()
    assert max(first) < 0.3
    page.get_by_role("button", name="wolf").hover()
    right = brightest()
    assert right[0] > 0.5
    assert right[1] < 0.5
    assert page.locator(".said").inner_text() == "wolf: 50% confident"
    page.get_by_role("button", name="a", exact=True).hover()
    assert brightest() == first
    page.fill("#search", "wolf")
    assert page.locator("article:visible").count() == 1
