"""Where the model looked for each word: a PNG strip, or one HTML page that lights a word's regions.

The photograph is shown through the attention map in the perceptually uniform colour map "inferno" (van der
Walt and Smith 2015), near black where the model did not look, so that what it looked at stands out. A map is
drawn relative to its peak; a nearly flat one stays dim, since a peak counts as at least four times the mean.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from captioner.caption import Caption, Word
from captioner.errors import OptionsError

__all__ = ["check_heatmap_path", "draw_html", "draw_png", "write_heatmap"]

INFERNO = "000004 1f0c48 550f6d 88226a ba3655 e35933 f98c0a f9c932"
"""Evenly spaced stops; the last eighth, near white, is left out: it would wash out what matters most."""
OPACITY = 0.55
FLAT = 4.0

HTML_PHOTO_SIDE = 1024
TILE_AREA = 280 * 280
ROW_WIDTH = 1600
MARGIN, GAP, LABEL_HEIGHT, TITLE_SIZE = 36, 18, 62, 34
BACKGROUND, TEXT, MUTED, TRACK, ACCENT = "#131218", "#f4f1ea", "#9c97a6", "#2c2a35", "#f98c0a"


class Size(NamedTuple):
    """Pixels of an image."""

    width: int
    height: int


def check_heatmap_path(path: str | Path) -> None:
    """Say before the work what :func:`write_heatmap` would say after it.

    Raises:
        OptionsError: the suffix is not .png, .html or .htm, or the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".html", ".htm"):
        raise OptionsError(f"a heatmap is a .png or .html file: {path.name!r} is neither")
    if not path.absolute().parent.is_dir():
        raise OptionsError(f"the heatmap's folder does not exist; make it first: {path.parent}")


def write_heatmap(path: str | Path, items: Iterable[tuple[Image.Image, Caption]]) -> None:
    """Draw captions over their photographs into one file, whose suffix says how.

    Args:
        path: ``.png`` for strips, one below the other; ``.html`` or ``.htm`` for a page of its own.
        items: upright photographs, of any size, with their captions, whose words must have ``attention``.
            They are taken one at a time: a generator need not hold all photographs in memory.

    Raises:
        OptionsError: another suffix, no such folder, or a caption without attention.
    """
    check_heatmap_path(path)
    if Path(path).suffix.lower() == ".png":
        _stack([draw_png(photo, caption) for photo, caption in items]).save(path)
    else:
        Path(path).write_text(draw_html(items), encoding="utf-8")


def draw_png(photo: Image.Image, caption: Caption) -> Image.Image:
    """A strip: the caption, the photograph, and a tile for each word with its map, box and confidence.

    Args:
        photo: the upright photograph, of any size; its aspect ratio is kept.
        caption: its caption, with ``attention`` for every word.

    Returns:
        An RGB image, at most about 1600 pixels wide; further tiles wrap to the next row.

    Raises:
        OptionsError: a word has no attention map.
    """
    tile = _tile_size(photo)
    photo = photo.convert("RGB").resize(tile, Image.Resampling.LANCZOS)
    count = 1 + len(caption.words)
    rows = -(-count // max(1, (ROW_WIDTH - 2 * MARGIN + GAP) // (tile.width + GAP)))
    columns = -(-count // rows)  # rows as even as may be: 9 tiles are 5 and 4, not 7 and 2
    width = 2 * MARGIN + columns * (tile.width + GAP) - GAP
    top = MARGIN + 2 * TITLE_SIZE
    strip = Image.new("RGB", (width, top + rows * (tile.height + LABEL_HEIGHT) + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    title = _font_to_fit(caption.caption, TITLE_SIZE, width - 2 * MARGIN)
    draw.text((MARGIN, MARGIN), caption.caption, fill=TEXT, font=title, anchor="lt")

    tiles = [(photo, "the photo", caption.confidence)]
    tiles += [(_light(photo, caption, word), word.text, word.confidence) for word in caption.words]
    for index, (picture, text, confidence) in enumerate(tiles):
        left = MARGIN + index % columns * (tile.width + GAP)
        upper = top + index // columns * (tile.height + LABEL_HEIGHT)
        strip.paste(picture, (left, upper))
        _label(draw, (left, upper + tile.height), tile.width, text, confidence)
    return strip


def draw_html(items: Iterable[tuple[Image.Image, Caption]]) -> str:
    """One page in which pointing at a word, focusing or tapping it lights the regions that it came from.

    It needs nothing but itself: the photographs are inside, at most 1024 pixels a side, and its content
    security policy allows its own style and script, by their hashes, and ``data:`` pictures.

    Args:
        items: upright photographs, of any size, with their captions, whose words must have ``attention``.

    Raises:
        OptionsError: a word has no attention map.
    """
    page = resources.files("captioner").joinpath("heatmap.html").read_text(encoding="utf-8")
    figures = [_figure(photo, caption) for photo, caption in items]
    policy = ["default-src 'none'", "img-src data:", *(_allow(page, tag) for tag in ("style", "script"))]
    values = {
        "policy": "; ".join(policy),
        "palette": INFERNO,
        "opacity": str(OPACITY),
        "figures": "\n".join(figures),  # last, since it alone holds text from outside
    }
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", value)
    return page


def _strength(caption: Caption, word: Word) -> NDArray[np.float32]:
    """The word's map as (h, w) in 0…1, relative to its peak."""
    if word.attention is None:
        file = caption.file or caption.caption
        raise OptionsError(f"{file}: the caption has no attention to draw; ask for it with attention=True")
    attention = np.array(word.attention, dtype=np.float32)
    strength: NDArray[np.float32] = attention / max(attention.max(), FLAT * attention.mean())
    return strength


def _box_in(size: Size, caption: Caption, word: Word) -> tuple[float, float, float, float] | None:
    """The word's box, which is in pixels of the original, in those of a picture of another size."""
    if word.box is None:
        return None
    x, y = size.width / caption.width, size.height / caption.height
    left, top, right, bottom = word.box
    return left * x, top * y, right * x, bottom * y


def _light(photo: Image.Image, caption: Caption, word: Word) -> Image.Image:
    """The photo seen through the word's map, with its box."""
    grid = Image.fromarray(_strength(caption, word))
    strength = np.asarray(grid.resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.array([list(bytes.fromhex(stop)) for stop in INFERNO.split()])
    places = np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(strength, places, channel) for channel in stops.T], axis=-1)
    lit = Image.blend(photo, Image.fromarray(colours.astype(np.uint8)), OPACITY)
    if box := _box_in(Size(*photo.size), caption, word):
        left, top, right, bottom = box
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(lit).rounded_rectangle(corners, radius=5, outline="white", width=2)
    return lit


def _label(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, text: str, confidence: float) -> None:
    """Under a tile: a bar as long as the confidence, the word, and the confidence in per cent."""
    left, top = at
    draw.rectangle((left, top + 6, left + width - 1, top + 9), fill=TRACK)
    draw.rectangle((left, top + 6, left + max(1, round(width * confidence)) - 1, top + 9), fill=ACCENT)
    percent, small = f"{confidence:.0%}", ImageFont.load_default(18)
    room = width - small.getlength(percent) - GAP
    baseline = top + 36
    draw.text((left, baseline), text, fill=TEXT, font=_font_to_fit(text, 23, room), anchor="ls")
    draw.text((left + width, baseline), percent, fill=MUTED, font=small, anchor="rs")


def _figure(photo: Image.Image, caption: Caption) -> str:
    """The ``<figure>`` of one photograph; every text from outside is escaped."""
    photo = photo.convert("RGB")
    photo.thumbnail((HTML_PHOTO_SIDE, HTML_PHOTO_SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG", quality=88)
    buttons = [_button(caption, word) for word in caption.words]
    alternatives = "".join(
        f"<li>{escape(item.caption)} <small>{item.confidence:.0%}</small></li>"
        for item in caption.alternatives
    )
    facts = f"{caption.width} × {caption.height} · {caption.model} · {caption.confidence:.0%} confident"
    return FIGURE.format(
        width=photo.width,
        height=photo.height,
        jpeg=base64.b64encode(jpeg.getvalue()).decode(),
        caption=escape(caption.caption),
        words=" ".join(buttons),
        alternatives=f"<ol>{alternatives}</ol>" if alternatives else "",
        file=escape(caption.file or "photograph"),
        facts=escape(facts),
    )


FIGURE = """\
<figure>
<div class="stage"><div class="photo">
<img width="{width}" height="{height}" alt="{caption}" src="data:image/jpeg;base64,{jpeg}">
<canvas aria-hidden="true"></canvas><div class="box" aria-hidden="true"></div>
</div></div>
<figcaption>
<p class="words">{words}</p>
<p class="said" aria-live="polite"></p>
{alternatives}
<p class="facts"><b>{file}</b> {facts}</p>
</figcaption>
</figure>"""


def _button(caption: Caption, word: Word) -> str:
    """A word that can be pointed at, with its map in 0…255 and its box in per cent of the photo."""
    strength = _strength(caption, word)
    cells = " ".join(str(round(255 * float(value))) for value in strength.flat)
    box = _box_in(Size(100, 100), caption, word) or ()
    return (
        f'<button type="button" aria-pressed="false" data-columns="{strength.shape[1]}" data-map="{cells}" '
        f'data-box="{" ".join(f"{value:.2f}" for value in box)}" data-confidence="{word.confidence:.3f}">'
        f"{escape(word.text)}</button>"
    )


def _allow(page: str, tag: str) -> str:
    """The policy that allows what stands in the page's one <style> or <script>, and no other."""
    content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert content, f"heatmap.html has a <{tag}>"
    digest = hashlib.sha256(content[1].encode()).digest()
    return f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'"


def _tile_size(photo: Image.Image) -> Size:
    """Of equal area whatever the aspect ratio, within a row's width and a sane height."""
    scale = (TILE_AREA / (photo.width * photo.height)) ** 0.5
    scale = min(scale, (ROW_WIDTH - 2 * MARGIN) / photo.width, 2 * ROW_WIDTH / photo.height)
    return Size(max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))


def _font_to_fit(text: str, size: int, room: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The built-in font at ``size``, or smaller so that the text fits, down to what can still be read."""
    length = ImageFont.load_default(size).getlength(text)
    return ImageFont.load_default(size if length <= room else max(11, int(size * room / length)))


def _stack(strips: list[Image.Image]) -> Image.Image:
    """The strips one below the other."""
    width = max((strip.width for strip in strips), default=1)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips) or 1), BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet
