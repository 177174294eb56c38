"""The gallery of a batch: what is in the file, whatever was in the records."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import make_caption
from images import draw_noise, draw_scene, encode
from PIL import Image

from captioner.errors import ImageError, OptionsError
from captioner.report import CHUNK, THUMBNAIL_SIDE, Entry, check_report_path, write_report

PHOTO = encode(draw_scene(960, 640), "JPEG")


class Cards(HTMLParser):
    """A page's photographs as a browser gets them: their facts, and the tags and text of their figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        page = path.read_text(encoding="utf-8")
        self.facts: list[dict[str, str | None]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        for attributes, content in re.findall(
            r'<script type="text/html"(.*?)>\n(.*?)</script>', page, re.DOTALL
        ):
            self.feed(f"<card{attributes}>{content}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "card":
            self.facts.append(dict(attrs))
            self.texts.append("")
        else:
            self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all such tags."""
        return [attributes for name, attributes in self.tags if name == tag]


def record(file: str, text: str = "a dog runs", **more: Any) -> dict[str, Any]:
    return {**make_caption(text, width=960, height=640).to_dict(), "file": file, **more}


def thumbnail(cards: Cards, index: int = 0) -> Image.Image:
    source = cards.of("img")[index]["src"] or ""
    assert source.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_captions_thumbnails_and_attention(tmp_path: Path):
    assert (
        write_report(tmp_path / "gallery.html", [(PHOTO, record("a.jpg")), (PHOTO, record("b.jpg", "cat"))])
        == 2
    )
    cards = Cards(tmp_path / "gallery.html")
    assert cards.facts == [
        {"data-file": "a.jpg", "data-caption": "a dog runs", "data-confidence": "0.5000"},
        {"data-file": "b.jpg", "data-caption": "cat", "data-confidence": "0.5000"},
    ]
    assert "a dog runs" in cards.texts[0]
    assert "960 × 640 · fake · 50% confident" in cards.texts[0]
    picture = thumbnail(cards)
    assert picture.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE * 2 // 3)
    assert len(cards.of("button")) == 4
    cells = [cell.split(" ") for button in cards.of("button")[:3] if (cell := button["data-map"])]
    assert [[index for index, value in enumerate(cell) if value != "0"] for cell in cells] == [[0], [1], [2]]
    assert cards.of("button")[1]["data-box"] == "14.27 0.00 28.54 14.22"  # pixels 137…274 of 960, 0…91 of 640


def test_a_photo_is_shown_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(draw_scene(960, 640), "JPEG", exif=exif)
    write_report(tmp_path / "gallery.html", [(turned, record("a.jpg", width=640, height=960))])
    assert thumbnail(Cards(tmp_path / "gallery.html")).size == (213, 320)


def test_failed_files_are_there_with_their_error(tmp_path: Path):
    entries: list[Entry] = [
        (b"", {"file": "bad.jpg", "error": "is truncated", "error_kind": "damaged"}),
        (PHOTO, record("half.jpg", error="its sidecar cannot be written: no space")),
    ]
    write_report(tmp_path / "gallery.html", entries)
    cards = Cards(tmp_path / "gallery.html")
    assert cards.facts[0] == {"data-file": "bad.jpg", "data-error": "is truncated"}
    assert cards.facts[1]["data-caption"] == "a dog runs"
    assert [attributes["class"] for attributes in cards.of("p")].count("error") == 2
    assert "is truncated" in cards.texts[0]
    assert "no space" in cards.texts[1]
    assert len(cards.of("img")) == 1


def test_a_photo_that_has_gone_since_keeps_its_caption(tmp_path: Path):
    def open_shard() -> bytes:
        raise ImageError("shard.tar!a.jpg", "cannot be read: no such file")

    entries: list[Entry] = [
        (tmp_path / "gone.jpg", record("gone.jpg")),
        (open_shard, record("shard.tar!a.jpg")),
    ]
    write_report(tmp_path / "gallery.html", entries)
    cards = Cards(tmp_path / "gallery.html")
    assert [facts["data-caption"] for facts in cards.facts] == ["a dog runs"] * 2
    assert all("cannot be read" in text and "a dog runs" in text for text in cards.texts)
    assert cards.of("img") == []


def test_without_attention_words_light_nothing(tmp_path: Path):
    plain = make_caption("a dog", attention=False).to_dict()
    write_report(tmp_path / "gallery.html", [(lambda: PHOTO, plain)])
    buttons = Cards(tmp_path / "gallery.html").of("button")
    assert [sorted(button) for button in buttons] == [["aria-pressed", "data-confidence", "type"]] * 2


def test_hostile_text_is_text(tmp_path: Path):
    evil = "</script><script>alert(1)</script><!-- <script> <img src=x onerror=alert(1)>\"'{{palette}}&amp;"
    alternatives = [{"caption": evil, "confidence": 0.1, "logprob": -3.0}]
    spoken = record(evil, evil, model=evil, alternatives=alternatives)
    write_report(tmp_path / "gallery.html", [(PHOTO, spoken), (b"", {"file": evil, "error": evil})])
    cards = Cards(tmp_path / "gallery.html")
    assert cards.facts == [
        {"data-file": evil, "data-caption": evil, "data-confidence": "0.5000"},
        {"data-file": evil, "data-error": evil},
    ]
    assert [attributes["alt"] for attributes in cards.of("img")] == [evil]
    figure_tags = {"b", "button", "canvas", "div", "figcaption", "figure", "img", "li", "ol", "p", "small"}
    assert {tag for tag, _ in cards.tags} <= figure_tags
    assert not [name for _, attributes in cards.tags for name in attributes if name.startswith("on")]
    assert [text.count(evil) for text in cards.texts] == [4, 2]
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 3


def test_a_name_that_is_no_text(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_report(tmp_path / "gallery.html", [(PHOTO, record(name))])
    assert Cards(tmp_path / "gallery.html").facts[0]["data-file"] == "caf\\udce9.jpg"


def test_the_page_needs_nothing_but_itself(tmp_path: Path):
    write_report(tmp_path / "gallery.html", [(PHOTO, record("a.jpg"))])
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert "{{" not in page
    assert not re.search(r"https?:|url\(|@import|style=|href=", page)
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert policy
    hashed = r"'sha256-[\w+/]{43}='"
    assert re.fullmatch(
        f"default-src 'none'; img-src data:; style-src {hashed}; script-src {hashed}", policy[1]
    )


def test_no_photographs_are_a_page(tmp_path: Path):
    assert write_report(tmp_path / "gallery.htm", []) == 0
    assert Cards(tmp_path / "gallery.htm").facts == []


def test_entries_are_taken_as_the_page_is_written(tmp_path: Path):
    taken: list[int] = []
    opened: list[int] = []

    def open_photo() -> bytes:
        opened.append(len(taken))
        return PHOTO

    def entries() -> Iterator[Entry]:
        for index in range(3 * CHUNK):
            taken.append(index)
            yield open_photo, record(f"{index}.jpg")

    write_report(tmp_path / "gallery.html", entries())
    assert opened == [CHUNK] * CHUNK + [2 * CHUNK] * CHUNK + [3 * CHUNK] * CHUNK
    assert [facts["data-file"] for facts in Cards(tmp_path / "gallery.html").facts] == [
        f"{index}.jpg" for index in range(3 * CHUNK)
    ]


def test_a_photo_takes_little_room(tmp_path: Path):
    noise = encode(draw_noise(1200, 800), "JPEG")  # what compresses worst
    write_report(tmp_path / "empty.html", [])
    write_report(tmp_path / "one.html", [(noise, record("a.jpg"))])
    sizes = [(tmp_path / name).stat().st_size for name in ("empty.html", "one.html")]
    assert sizes[1] - sizes[0] < 60_000


def test_a_run_that_ends_half_way_leaves_the_old_report(tmp_path: Path):
    def entries() -> Iterator[Entry]:
        yield PHOTO, record("a.jpg")
        raise KeyboardInterrupt

    (tmp_path / "gallery.html").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "gallery.html", entries())
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]
    assert (tmp_path / "gallery.html").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "problem"), [("a.pdf", r"\.html"), ("html", r"\.html"), ("no/a.html", "folder")]
)
def test_paths_that_cannot_be_are_refused(name: str, problem: str, tmp_path: Path):
    with pytest.raises(OptionsError, match=problem):
        check_report_path(tmp_path / name)
    with pytest.raises(OptionsError, match=problem):
        write_report(tmp_path / name, [])
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_sure_or_missing_is_said_in_words(tmp_path: Path):
    doubtful = record("a.jpg") | {"uncertain": True}
    short = record("b.jpg") | {
        "unhedged": {"caption": "a <dog> runs away", "confidence": 0.1, "logprob": -3.0}
    }
    cut = record("c.jpg") | {"warning": "incomplete: the last 15 % of the photo is missing"}
    write_report(tmp_path / "gallery.html", [(PHOTO, doubtful), (PHOTO, short), (PHOTO, cut)])
    cards = Cards(tmp_path / "gallery.html")
    assert "Not sure" in cards.texts[0]
    assert "Not sure of more; the whole caption was “a <dog> runs away”" in cards.texts[1]
    assert "Not sure" not in cards.texts[2]
    assert "The last 15 % of the photo is missing" in cards.texts[2]
