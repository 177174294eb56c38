"""Where the model looked for each word: a PNG strip, or one HTML page that lights a word's regions.

The photograph is shown through the attention map in the perceptually uniform colour map "inferno" (van der
Walt and Smith 2015), near black where the model did not look, so that what it looked at stands out. A map is
drawn relative to its peak; a nearly flat one stays dim, since a peak counts as at least four times the mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captioner.caption import Caption, Word
from captioner.errors import OptionsError
from captioner.figure import INFERNO, OPACITY, Size, box_in, draw_figure, map_strength, read_page

__all__ = ["check_heatmap_path", "draw_html", "draw_png", "write_heatmap"]

HTML_PHOTO_SIDE, HTML_QUALITY = 1024, 88
TILE_AREA = 280 * 280
ROW_WIDTH = 1600
MARGIN, GAP, LABEL_HEIGHT, TITLE_SIZE = 36, 18, 62, 34
BACKGROUND, TEXT, MUTED, TRACK, ACCENT = "#131218", "#f4f1ea", "#9c97a6", "#2c2a35", "#f98c0a"


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
        Path(path).write_text(draw_html(items), encoding="utf-8", errors="backslashreplace")


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
    _check_attention(caption)
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
    figures = []
    for photo, caption in items:
        _check_attention(caption)
        figures.append(draw_figure(photo, [caption], side=HTML_PHOTO_SIDE, quality=HTML_QUALITY))
    return read_page("heatmap.html", figures="\n".join(figures))


def _check_attention(caption: Caption) -> None:
    if any(word.attention is None for word in caption.words):
        file = caption.file or caption.caption
        raise OptionsError(
            f"{file}: the caption has no attention to draw: ask for it with attention=True, "
            "and of a model that has it"
        )


def _light(photo: Image.Image, caption: Caption, word: Word) -> Image.Image:
    """The photo seen through the word's map, with its box."""
    assert word.attention is not None, "the caller checks"
    grid = Image.fromarray(map_strength(word.attention))
    strength = np.asarray(grid.resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.array([list(bytes.fromhex(stop)) for stop in INFERNO.split()])
    places = np.linspace(0, 1, len(stops))
    colours = np.stack([np.interp(strength, places, channel) for channel in stops.T], axis=-1)
    lit = Image.blend(photo, Image.fromarray(colours.astype(np.uint8)), OPACITY)
    if box := box_in(Size(*photo.size), caption, word):
        left, top, right, bottom = box
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        ImageDraw.Draw(lit).rounded_rectangle(corners, radius=5, outline="white", width=2)
    return lit


def _label(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, text: str, confidence: float | None
) -> None:
    """Under a tile: a bar as long as the confidence, the word, and the confidence in per cent if known."""
    left, top = at
    draw.rectangle((left, top + 6, left + width - 1, top + 9), fill=TRACK)
    if confidence is not None:
        draw.rectangle((left, top + 6, left + max(1, round(width * confidence)) - 1, top + 9), fill=ACCENT)
    percent, small = "" if confidence is None else f"{confidence:.0%}", ImageFont.load_default(18)
    room = width - small.getlength(percent) - GAP
    baseline = top + 36
    draw.text((left, baseline), text, fill=TEXT, font=_font_to_fit(text, 23, room), anchor="ls")
    draw.text((left + width, baseline), percent, fill=MUTED, font=small, anchor="rs")


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
