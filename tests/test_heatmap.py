"""Heatmaps: colours at known places, hostile text, and the page in a real browser."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes import make_caption
from PIL import Image

from captioner.caption import Alternative, Word
from captioner.errors import OptionsError
from captioner.figure import OPACITY
from captioner.heatmap import GAP, LABEL_HEIGHT, MARGIN, TITLE_SIZE, draw_html, draw_png, write_heatmap

if TYPE_CHECKING:
    from playwright.sync_api import Page

GREY = (128, 128, 128)
DARKEST, BRIGHTEST = (0, 0, 4), (249, 201, 50)
TOP = MARGIN + 2 * TITLE_SIZE


def lit(colour: tuple[int, int, int]) -> tuple[int, ...]:
    """Of a grey photo seen through a colour of the map."""
    return tuple(
        round((1 - OPACITY) * grey + OPACITY * channel) for grey, channel in zip(GREY, colour, strict=True)
    )


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def close(colour: object, expected: tuple[int, ...]) -> bool:
    assert isinstance(colour, tuple)
    return all(abs(one - other) <= 6 for one, other in zip(colour, expected, strict=True))


class Parsed(HTMLParser):
    """All start tags of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_png_lights_the_cell_the_word_looked_at():
    caption = make_caption("one two three", width=2800, height=2800)
    strip = draw_png(grey(280, 280), caption)  # a tile is as large as this photo, a cell 40 × 40
    assert strip.getpixel((MARGIN + 140, TOP + 140)) == GREY
    for index in (1, 2, 3):
        left = MARGIN + index * (280 + GAP)
        centre = strip.getpixel((left + 40 * (index - 1) + 20, TOP + 20))
        assert close(centre, lit(BRIGHTEST))
        assert close(strip.getpixel((left + 279 - 20, TOP + 279 - 20)), lit(DARKEST))


def test_png_outlines_the_box():
    word = Word(text="dog", logprob=-1, confidence=0.4, attention=((1.0,),), box=(700, 1400, 2100, 2800))
    caption = replace(make_caption("dog", width=2800, height=2800), words=(word,))
    strip = draw_png(grey(280, 280), caption)
    left = MARGIN + 280 + GAP
    white = {
        "left": (left + 70, TOP + 200),
        "right": (left + 209, TOP + 200),
        "top": (left + 140, TOP + 140),
        "bottom": (left + 140, TOP + 279),
    }
    assert {side: strip.getpixel(place) for side, place in white.items()} == dict.fromkeys(
        white, (255, 255, 255)
    )
    assert strip.getpixel((left + 60, TOP + 200)) != (255, 255, 255)


def test_a_flat_map_stays_dim():
    flat = tuple((1 / 49,) * 7 for _ in range(7))
    caption = make_caption("the", width=280, height=280)
    caption = replace(caption, words=(replace(caption.words[0], attention=flat, box=None),))
    pixel = draw_png(grey(280, 280), caption).getpixel((MARGIN + 280 + GAP + 140, TOP + 140))
    assert isinstance(pixel, tuple)
    assert sum(pixel) < sum(GREY)


@pytest.mark.parametrize("size", [(280, 280), (4000, 100), (100, 4000), (1, 1), (1, 900), (6000, 4000)])
def test_png_keeps_the_aspect_ratio_and_wraps(size: tuple[int, int]):
    caption = make_caption(" ".join(["word"] * 20), width=size[0], height=size[1])
    strip = draw_png(Image.new("RGB", size, "white"), caption)
    assert strip.width <= 1600
    row = [strip.getpixel((x, TOP)) == (255, 255, 255) for x in range(strip.width)]
    column = [strip.getpixel((MARGIN, y)) == (255, 255, 255) for y in range(TOP, strip.height)]
    width, height = sum(row[: row.index(False, MARGIN)]), column.index(False)
    assert abs(width / height / (size[0] / size[1]) - 1) < 0.15 or min(width, height) <= 2
    rows = math.ceil(21 / ((1600 - 2 * MARGIN + GAP) // (width + GAP)))
    assert strip.height >= TOP + rows * (height + LABEL_HEIGHT)


def test_png_stacks_photos(tmp_path: Path):
    items = [(grey(280, 280), make_caption("one")), (grey(560, 280), make_caption("two words"))]
    write_heatmap(tmp_path / "map.PNG", items)
    strips = [draw_png(photo, caption) for photo, caption in items]
    with Image.open(tmp_path / "map.PNG") as sheet:
        assert sheet.size == (max(strip.width for strip in strips), sum(strip.height for strip in strips))
        assert sheet.crop((0, 0, *strips[0].size)).tobytes() == strips[0].tobytes()


@pytest.mark.parametrize("name", ["map.jpg", "map", "map.html.txt"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path):
    with pytest.raises(OptionsError, match=r"\.png or \.html"):
        write_heatmap(tmp_path / name, [(grey(8, 8), make_caption("a"))])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path: Path):
    with pytest.raises(OptionsError, match="does not exist"):
        write_heatmap(tmp_path / "none" / "map.png", [])


@pytest.mark.parametrize("draw", [draw_png, lambda photo, caption: draw_html([(photo, caption)])])
def test_a_caption_without_attention_is_refused(draw):
    with pytest.raises(OptionsError, match=r"dog\.jpg.*attention=True"):
        draw(grey(8, 8), make_caption("a dog", file="dog.jpg", attention=False))


def test_html_holds_hostile_text_as_text():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{figures}}{{palette}}&amp;"
    caption = make_caption("x")
    caption = replace(
        caption,
        file=evil,
        model=evil,
        caption=evil,
        words=(replace(caption.words[0], text=evil),),
        alternatives=(Alternative(caption=evil, confidence=0.1, logprob=-3.0),),
    )
    page = Parsed(draw_html([(grey(8, 8), caption)]))
    assert {tag: page.count(tag) for tag in ("script", "img", "figure", "button")} == {
        "script": 1,
        "img": 1,
        "figure": 1,
        "button": 1,
    }
    assert page.text.count(evil) == 4
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [evil]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_html_of_a_file_whose_name_is_no_text(tmp_path: Path):
    caption = make_caption("a dog", file=os.fsdecode(b"caf\xe9.jpg"))
    write_heatmap(tmp_path / "map.html", [(grey(8, 8), caption)])
    assert "<b>caf\\udce9.jpg</b>" in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_html_shows_a_prompt_as_text():
    caption = replace(make_caption("a dog <b>"), caption="say: a dog, <b>")
    html = draw_html([(grey(8, 8), caption)])
    words = re.search('<p class="words">(.*?)</p>', html)
    assert words
    assert re.sub("<button.*?>(.*?)</button>", r"[\1]", words[1]) == "say: [a] [dog], [&lt;b&gt;]"


def test_html_needs_nothing_but_itself():
    html = draw_html([(grey(3000, 20), make_caption("one two")), (grey(8, 8), make_caption("three"))])
    page = Parsed(html)
    links = [a.get("src") or a.get("href") for _, a in page.tags if "src" in a or "href" in a]
    assert len(links) == 2
    assert all(link and link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"https?:|url\(|@import|style=", html)
    assert page.count("button") == 3
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    hashes = {}
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes['style']}'; "
        f"script-src 'sha256-{hashes['script']}'"
    )


def test_html_without_photos_is_a_page():
    assert Parsed(draw_html([])).count("figure") == 0


def brightest(page: Page) -> tuple[float, float]:
    """Where the first photo's canvas is brightest, in 0…1 of its width and height."""
    x, y = page.evaluate(
        """() => {
            const canvas = document.querySelector(".photo canvas"), {width, height} = canvas;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            const bright = (i) => data[i] + data[i + 1];
            let best = 0;
            for (let i = 0; i < data.length; i += 4) if (bright(i) > bright(best)) best = i;
            return [best / 4 % width / width, Math.floor(best / 4 / width) / height];
        }"""
    )
    return x, y


def opacity(page: Page) -> float:
    return float(page.locator(".photo canvas").first.evaluate("canvas => getComputedStyle(canvas).opacity"))


def test_pointing_focusing_and_tapping_light_the_regions(page: Page, tmp_path: Path):
    caption = make_caption(" ".join("abcdefghij"), width=1200, height=800)
    write_heatmap(tmp_path / "map.html", [(grey(600, 400), caption)] * 2)
    page.goto((tmp_path / "map.html").as_uri())
    page.emulate_media(reduced_motion="reduce")
    word, said = page.locator("figure").first.locator("button"), page.locator(".said").first
    assert opacity(page) == 0

    word.nth(9).hover()
    assert opacity(page) == OPACITY
    assert brightest(page) == pytest.approx((2.5 / 7, 1.5 / 7), abs=0.05)
    assert said.inner_text() == "j: 50% confident"
    photo, box = page.locator(".photo").first.bounding_box(), page.locator(".box").first.bounding_box()
    assert photo
    assert box
    left, top, right, bottom = caption.words[9].box or ()
    scale = photo["width"] / caption.width
    assert box["x"] - photo["x"] == pytest.approx(left * scale, abs=1)
    assert box["y"] - photo["y"] == pytest.approx(top * scale, abs=1)
    assert box["width"] == pytest.approx((right - left) * scale, abs=1)
    assert box["height"] == pytest.approx((bottom - top) * scale, abs=1)

    page.mouse.move(0, 0)
    assert opacity(page) == 0

    word.nth(8).tap()
    assert word.nth(8).get_attribute("aria-pressed") == "true"
    assert brightest(page) == pytest.approx((1.5 / 7, 1.5 / 7), abs=0.05)
    page.keyboard.press("Shift+Tab")
    assert said.inner_text() == "h: 50% confident"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert said.inner_text() == "i: 50% confident"
    page.mouse.move(0, 0)
    page.keyboard.press("Escape")
    assert opacity(page) == 0
    assert word.nth(7).get_attribute("aria-pressed") == "false"


def test_words_read_as_a_sentence_without_a_script(page: Page, tmp_path: Path):
    write_heatmap(tmp_path / "map.html", [(grey(60, 40), make_caption("a dog runs"))])
    page.goto((tmp_path / "map.html").as_uri())
    assert page.locator(".words").inner_text() == "a dog runs"
    assert page.get_by_alt_text("a dog runs").count() == 1
