"""The web page in a real browser, in front of the real application: captions, words, ways in, ways out."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fakes import make_caption
from images import draw_scene, encode
from playwright.sync_api import expect
from scripted import ScriptedCaptioner
from tiny import tiny_captioner
from webpage import add, photo, word

from captioner.batch.export import COLUMNS
from captioner.caption import Alternative

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

TEN_WORDS = " ".join("abcdefghij")


def lit(page: Page) -> tuple[float, float] | None:
    """Where the first photo's heatmap is clearest, in 0…1 of its width and height; None if it is hidden."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector(".photo canvas"), {width, height} = canvas;
            if (getComputedStyle(canvas).opacity !== "1") return null;
            const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
            let best = 3;
            for (let i = 3; i < data.length; i += 4) if (data[i] < data[best]) best = i;
            return [Math.floor(best / 4) % width / width, Math.floor(best / 4 / width) / height];
        }"""
    )


def cell(row: int, column: int) -> object:
    """Anywhere in a cell of the stand-in's 7 × 7 grid."""
    return pytest.approx(((column + 0.5) / 7, (row + 0.5) / 7), abs=0.5 / 7)


def test_photos_become_captions(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    captioner.hold()
    page.goto(serve())
    expect(page.get_by_role("status").first).to_have_text("scripted on cpu")
    cards = add(page, photo("one.png"), photo("two.png", size=(80, 120)), photo("three.jpg", format="JPEG"))
    expect(page.get_by_role("heading", level=2)).to_have_text("0 of 3 photos captioned")
    assert cards.get_by_role("heading", level=3).all_inner_texts() == ["one.png", "two.png", "three.jpg"]
    page.wait_for_function("[...document.querySelectorAll('article img')].every((img) => img.naturalWidth)")
    assert cards.first.get_attribute("aria-busy") == "true"

    captioner.release()
    expect(page.get_by_role("heading", level=2)).to_have_text("3 photos")
    assert cards.locator(".caption").all_inner_texts() == [
        "a photo 120 wide and 80 high",
        "a photo 80 wide and 120 high",
        "a photo 120 wide and 80 high",
    ]
    assert cards.first.get_attribute("aria-busy") == "false"
    assert cards.first.locator(".others li").all_inner_texts() == ["another 0\n40%", "another 1\n40%"]
    assert cards.first.locator(".facts").inner_text() == "50% sure · 120 × 80 · fake"
    assert page.get_by_alt_text("a photo 80 wide and 120 high").count() == 1
    assert "a photo" in page.locator("#live").inner_text()


def test_words_appear_as_they_are_decided(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    captioner.hold()
    page.goto(serve())
    card = add(page, photo())
    expect(card.locator(".said")).to_have_text("Looking")
    captioner.let_out(2)
    expect(card.locator(".caption")).to_have_text("a photo ")
    assert page.locator(".word").count() == 0
    captioner.release()
    expect(card.locator(".caption")).to_have_text("a photo 120 wide and 80 high")
    assert page.locator(".word").count() == 7


def test_a_real_model_captions_and_its_words_light_up(page: Page, serve: Callable[..., str]):
    model = tiny_captioner()
    expected = model.caption([encode(draw_scene(), "PNG")])[0].caption
    page.emulate_media(reduced_motion="reduce")
    page.goto(serve(model))
    card = add(page, photo(size=(96, 64)))
    expect(card.locator(".caption")).to_have_text(expected)
    pixels = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 96, 96).data].join()"
    seen = []
    for button in page.locator(".word").all()[:2]:
        button.hover()
        seen.append(page.locator("canvas").evaluate(pixels))
    assert seen[0] != seen[1]


def test_pointing_focusing_and_tapping_light_the_regions(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    caption = captioner.captions["scene.png"] = make_caption(TEN_WORDS, width=1200, height=800)
    page.emulate_media(reduced_motion="reduce")
    page.goto(serve())
    card = add(page, photo(size=(600, 400)))
    expect(card.locator(".caption")).to_have_text(TEN_WORDS)
    said = card.locator(".said")
    assert lit(page) is None

    word(page, "j").hover()
    assert lit(page) == cell(1, 2)
    assert said.inner_text() == "j · 50% sure"
    around, box = card.locator(".photo").bounding_box(), card.locator(".box").bounding_box()
    assert around
    assert box
    left, top, right, bottom = caption.words[9].box or ()
    scale = around["width"] / caption.width
    assert box["x"] - around["x"] == pytest.approx(left * scale, abs=1)
    assert box["y"] - around["y"] == pytest.approx(top * scale, abs=1)
    assert box["width"] == pytest.approx((right - left) * scale, abs=1)
    assert box["height"] == pytest.approx((bottom - top) * scale, abs=1)
    page.mouse.move(0, 0)
    assert lit(page) is None

    word(page, "i").tap()
    assert word(page, "i").get_attribute("aria-pressed") == "true"
    assert lit(page) == cell(1, 1)
    word(page, "i").tap()
    assert lit(page) is None

    page.keyboard.press("Home")
    assert lit(page) == cell(0, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert said.inner_text() == "b · 50% sure"
    assert lit(page) == cell(0, 1)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert lit(page) is None


def test_a_word_says_where_it_looked(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    flat = tuple((1 / 49,) * 7 for _ in range(7))
    caption = make_caption(TEN_WORDS)
    words = (replace(caption.words[0], attention=flat, box=None), *caption.words[1:])
    captioner.captions["scene.png"] = replace(caption, words=words)
    page.goto(serve())
    add(page, photo())
    for name in ("a, 50% sure, looked all over the photo", "d, 50% sure, looked at the top"):
        page.get_by_role("button", name=name, exact=True).wait_for()
    page.get_by_role("button", name="i, 50% sure, looked at the top left", exact=True).wait_for()


def test_photos_and_folders_are_dropped(page: Page, serve: Callable[..., str], tmp_path: Path):
    (tmp_path / "holiday" / "beach").mkdir(parents=True)
    for number in (10, 9):
        (tmp_path / f"holiday/{number}.png").write_bytes(photo()["buffer"])
    for name in ("one.png", "holiday/beach/3.png", "holiday/.hidden.png", "holiday/raw.cr9"):
        (tmp_path / name).write_bytes(photo()["buffer"])
    for name in ("holiday/notes.txt", "holiday/Thumbs.db", "holiday/film.mp4", "plain.txt"):
        (tmp_path / name).write_bytes(b"no photo")
    page.goto(serve())
    browser = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(tmp_path / name) for name in ("one.png", "plain.txt", "holiday")]}
    for kind in ("dragEnter", "dragOver", "drop"):
        drag = {"type": kind, "x": 100, "y": 100, "data": {**data, "dragOperationsMask": 1}}
        browser.send("Input.dispatchDragEvent", drag)
        if kind == "dragOver":
            expect(page.get_by_text("Drop to caption")).to_be_visible()
    expect(page.get_by_role("heading", level=2)).to_have_text("6 photos · 1 without a caption")
    names = page.locator("h3").all_inner_texts()
    assert names == ["one.png", "plain.txt", "9.png", "10.png", "3.png", "raw.cr9"]
    assert page.locator("#veil").is_hidden()


def test_photos_are_pasted(page: Page, serve: Callable[..., str]):
    page.goto(serve())
    page.evaluate(
        """bytes => {
            const clipboardData = new DataTransfer();
            for (const name of ["one.png", "two.png"]) {
                clipboardData.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            }
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
        }""",
        list(photo()["buffer"]),
    )
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")
    assert page.locator("h3").all_inner_texts() == ["one.png", "two.png"]


def test_captions_are_copied(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    name, text = 'my "b&w" photo.png', "a sign says \"<b> & 'c'\""
    captioner.captions["my %22b&w%22 photo.png"] = make_caption(text)  # how browsers write it in a form
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(serve())
    add(page, photo(name))

    def copied(button: str, label: str) -> str:
        expect(page.locator(button)).to_have_text(label)
        page.locator(button).click()
        expect(page.locator(button)).to_have_text("Copied")
        return page.evaluate("navigator.clipboard.readText()")

    assert copied(".copy-caption", "Copy caption") == text
    tag = copied(".copy-alt", "Copy HTML alt")
    assert tag == (
        '<img src="my%20%22b%26w%22%20photo.png" alt="a sign says &quot;&lt;b&gt; &amp; \'c\'&quot;">'
    )
    read = "tag => new DOMParser().parseFromString(tag, 'text/html').querySelector('img').alt"
    assert page.evaluate(read, tag) == text
    assert page.locator("#live").inner_text().strip() == "Copied"


def test_all_captions_are_downloaded(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    for name, text in {"=one.png": 'a "b", c', "two.png": "é"}.items():
        captioner.captions[name] = make_caption(text, file=name)
    others = (Alternative(caption='"d"', confidence=0.25, logprob=-3.0),)
    whole = Alternative(caption="é, maybe", confidence=0.1, logprob=-5.0)
    captioner.captions["two.png"] = replace(
        captioner.captions["two.png"], alternatives=others, unhedged=whole, warning="incomplete: half of it"
    )
    captioner.captions["=one.png"] = replace(captioner.captions["=one.png"], uncertain=True, calibrated=True)
    page.goto(serve())
    add(page, photo("=one.png"), photo("two.png"))
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")

    def downloaded(label: str) -> str:
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == f"captions.{label.split()[-1].lower()}"
        return download.value.path().read_text(encoding="utf-8-sig")

    captions = json.loads(downloaded("Download as JSON"))["captions"]
    assert captions == [captioner.captions[name].to_dict() for name in ("=one.png", "two.png")]
    rows = list(csv.DictReader(io.StringIO(downloaded("Download as CSV"), newline="")))
    of_batches_alone = {"error", "error_kind", "sha256", "duplicate_of"}
    assert list(rows[0]) == [name for name in COLUMNS if name not in of_batches_alone]
    assert [(row["file"], row["caption"], row["confidence"], row["alternatives"]) for row in rows] == [
        ("'=one.png", 'a "b", c', "0.5", ""),
        ("two.png", "é", "0.5", '["\\"d\\""]'),
    ]
    assert [(row["warning"], row["calibrated"], row["uncertain"], row["unhedged"]) for row in rows] == [
        ("", "True", "True", ""),
        ("incomplete: half of it", "False", "", "é, maybe"),
    ]


def test_options_are_followed(page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner):
    page.goto(serve())
    add(page, photo())
    expect(page.get_by_role("heading", level=2)).to_have_text("1 photo")
    assert [(o.num_beams, o.alternatives, o.max_length, o.prompt) for o in captioner.streamed] == [
        (4, 2, 12, "")
    ]

    page.get_by_text("Options").click()
    page.get_by_label("Other captions").fill("5")
    page.get_by_label("Other captions").press("Tab")
    page.get_by_label("Beams").fill("3")
    page.get_by_label("Beams").press("Tab")
    assert page.get_by_label("Other captions").input_value() == "2"
    page.get_by_label("Longest caption").fill("9")
    page.get_by_label("Begin with").fill("it is")
    page.get_by_role("button", name="Caption again").click()
    expect(page.locator(".caption")).to_have_text("it is a photo 120 wide and 80 high")
    options = captioner.streamed[1]
    assert (options.num_beams, options.alternatives, options.max_length) == (3, 2, 9)
    assert (options.prompt, options.attention) == ("it is", True)
    assert page.locator(".word").all_inner_texts() == ["a", "photo", "120", "wide", "and", "80", "high"]

    page.get_by_label("Longest caption").fill("0")
    page.get_by_role("button", name="Caption again").click()
    assert len(captioner.streamed) == 2
    assert page.locator("#max_length").evaluate("field => field === document.activeElement")


def test_removed_photos_cost_nothing_more(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    captioner.hold()
    page.goto(serve(queue_size=1))
    add(page, photo("one.png"))
    expect(page.locator(".said")).to_have_text("Looking")
    page.get_by_role("button", name="Remove one.png").click()
    assert page.locator("article").count() == 0
    assert page.locator("#picker").evaluate("picker => picker === document.activeElement")
    captioner.release()
    add(page, photo("two.png"), photo("three.png"))
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")
    page.get_by_role("button", name="Remove two.png").click()
    assert page.locator("article h3").all_inner_texts() == ["three.png"]
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#results").is_hidden()


def test_what_is_missing_of_a_photo_is_said(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    cut = replace(make_caption("a dog"), warning="incomplete: the last 15 % of the photo is missing")
    captioner.captions["cut.png"] = cut
    page.goto(serve())
    cards = add(page, photo("cut.png"), photo("whole.png"))
    expect(page.get_by_role("heading", level=2)).to_have_text("2 photos")
    expect(cards.nth(0).locator(".warning")).to_have_text("The last 15 % of the photo is missing")
    expect(cards.nth(1).locator(".warning")).to_be_hidden()
    expect(cards.nth(0).locator(".doubt")).to_be_hidden()


def test_what_is_not_sure_is_said_and_sorted(
    page: Page, serve: Callable[..., str], captioner: ScriptedCaptioner
):
    """Cards stand as they were added until another order is chosen."""
    sure = {"one.png": 0.3, "two.png": 0.05, "three.png": 0.6}
    for name, confidence in sure.items():
        captioner.captions[name] = replace(make_caption("a dog", file=name), confidence=confidence)
    captioner.captions["two.png"] = replace(captioner.captions["two.png"], uncertain=True)
    whole = Alternative(caption="a dog on the moon", confidence=0.02, logprob=-9.0)
    captioner.captions["three.png"] = replace(captioner.captions["three.png"], unhedged=whole)
    page.goto(serve())
    cards = add(page, *(photo(name) for name in sure))
    expect(page.get_by_role("heading", level=2)).to_have_text("3 photos")
    assert captioner.streamed[0].min_confidence == 0.1
    assert not captioner.streamed[0].hedge
    expect(cards.nth(0).locator(".doubt")).to_be_hidden()
    expect(cards.nth(1).locator(".doubt")).to_have_text("Not sure")
    expect(cards.nth(2).locator(".doubt")).to_have_text(
        "Not sure of more; the whole caption was “a dog on the moon”"
    )

    page.get_by_label("Sort").select_option("least sure first")
    assert cards.get_by_role("heading", level=3).all_inner_texts() == ["two.png", "one.png", "three.png"]
    page.get_by_label("Sort").select_option("surest first")
    assert cards.get_by_role("heading", level=3).all_inner_texts() == ["three.png", "one.png", "two.png"]
    page.get_by_label("Sort").select_option("as added")
    assert cards.get_by_role("heading", level=3).all_inner_texts() == list(sure)

    page.get_by_text("Options").click()
    page.get_by_label("When not sure").select_option("say only what is sure")
    assert "say only what is sure" in page.locator(".changed").inner_text()
    page.get_by_role("button", name="Caption again").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("3 photos")
    assert captioner.streamed[-1].hedge
