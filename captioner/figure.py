"""A photograph as an HTML figure, in which pointing at a word lights the regions that it came from.

What the pages of :mod:`captioner.heatmap` and :mod:`captioner.report` share: a map's strengths and colours,
the figure with its style and script (``figure.css``, ``figure.js``), and a content security policy that
allows these and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.caption import Caption, RegionMap, Word

__all__ = ["INFERNO", "OPACITY", "Size", "box_in", "draw_figure", "map_strength", "read_page"]

INFERNO = "000004 1f0c48 550f6d 88226a ba3655 e35933 f98c0a f9c932"
"""Evenly spaced stops; the last eighth, near white, is left out: it would wash out what matters most."""
OPACITY = 0.55
FLAT = 4.0

FIGURE = """\
<figure>
<div class="stage"><div class="photo">
<img width="{width}" height="{height}" alt="{caption}" src="data:image/jpeg;base64,{jpeg}">
<canvas aria-hidden="true"></canvas><div class="box" aria-hidden="true"></div>
</div></div>
<figcaption>
{texts}
<p class="facts"><b>{file}</b> {facts}</p>
</figcaption>
</figure>"""


SAID = '<p class="said" aria-live="polite"></p>'


class Size(NamedTuple):
    """Pixels of an image."""

    width: int
    height: int


def map_strength(attention: RegionMap) -> NDArray[np.float32]:
    """A word's map as (h, w) in 0…1, relative to its peak; a nearly flat one stays low."""
    values = np.array(attention, dtype=np.float32)
    strength: NDArray[np.float32] = values / max(values.max(), FLAT * values.mean())
    return strength


def box_in(size: Size, caption: Caption, word: Word) -> tuple[float, float, float, float] | None:
    """The word's box, which is in pixels of the original, in those of a picture of another size."""
    if word.box is None:
        return None
    x, y = size.width / caption.width, size.height / caption.height
    left, top, right, bottom = word.box
    return left * x, top * y, right * x, bottom * y


def draw_figure(photo: Image.Image, captions: Sequence[Caption], *, side: int, quality: int) -> str:
    """The ``<figure>`` of one photograph; every text from outside is escaped.

    Args:
        photo: the upright photograph, of any size.
        captions: its caption, or those of several models; words without ``attention`` light nothing.
        side: pixels that the picture in the page has at most.
        quality: of its JPEG, 1…95.
    """
    photo = photo.convert("RGB")
    photo.thumbnail((side, side), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG", quality=quality, optimize=True)
    caption, facts = captions[0], [f"{captions[0].width} × {captions[0].height}"]
    if len(captions) == 1:
        words, alternatives = _texts(caption)
        texts = f"{words}\n{SAID}\n{alternatives}"
        facts += _source(caption)
    else:
        parts = [
            (f'<p class="by">{escape(" · ".join(_source(item)))}</p>', *_texts(item)) for item in captions
        ]
        texts = "\n".join([*("\n".join(part) for part in parts), SAID])
    return FIGURE.format(
        width=photo.width,
        height=photo.height,
        jpeg=base64.b64encode(jpeg.getvalue()).decode(),
        caption=escape(caption.caption),
        texts=texts,
        file=escape(caption.file or "photograph"),
        facts=escape(" · ".join(facts)),
    )


def _texts(caption: Caption) -> tuple[str, str]:
    """A caption's words with what is to be noted of it, and its alternatives."""
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in _notes(caption))
    alternatives = "".join(
        f"<li>{escape(item.caption)} <small>{_percent(item.confidence)}</small></li>"
        for item in caption.alternatives
    )
    return (
        f'{notes}<p class="words">{_sentence(caption)}</p>',
        f'<ol start="2">{alternatives}</ol>' if alternatives else "",
    )


def _source(caption: Caption) -> list[str]:
    """The model, and how sure it is where that is known."""
    sure = [] if caption.confidence is None else [f"{_percent(caption.confidence)} confident"]
    return [caption.model, *sure]


def _notes(caption: Caption) -> Iterator[str]:
    """What is missing of the photo, and whether the caption is in doubt."""
    if caption.warning is not None:
        missing = caption.warning.partition(": ")[2]
        yield missing[:1].upper() + missing[1:]
    if caption.unhedged is not None:
        yield f"Not sure of more; the whole caption was “{caption.unhedged.caption}”"
    elif caption.uncertain:
        yield "Not sure"


def read_page(template: str, **values: str) -> str:
    """A page of this package with its style, its script and the policy that allows only these.

    Args:
        template: the file's name, whose ``{{name}}`` are filled in.
        values: HTML for those names that are the template's own; they are filled in last, and not searched.
    """
    folder = resources.files("captioner")
    page = folder.joinpath(template).read_text(encoding="utf-8")
    for part in ("figure.css", "figure.js"):
        page = page.replace("{{" + part + "}}", folder.joinpath(part).read_text(encoding="utf-8"))
    policy = ["default-src 'none'", "img-src data:", *(_allow(page, tag) for tag in ("style", "script"))]
    values = {"policy": "; ".join(policy), "palette": INFERNO, "opacity": str(OPACITY)} | values
    return re.sub("{{(.*?)}}", lambda name: values[name[1]], page)


def _sentence(caption: Caption) -> str:
    """The whole caption, its words as buttons; those of a prompt, which the model did not write, are text."""
    parts, text, end = [], caption.caption, len(caption.caption)
    for word in reversed(caption.words):  # from the end, where no prompt can hold the same word
        start = text.rfind(word.text, 0, end)
        start = end if start < 0 else start
        parts += [escape(text[start + len(word.text) : end]), _button(caption, word)]
        end = start
    return "".join([escape(text[:end]), *reversed(parts)])


def _button(caption: Caption, word: Word) -> str:
    """A word that can be pointed at, with its map in 0…255 and its box in per cent of the photo."""
    looked = ""
    if word.attention is not None:
        strength = map_strength(word.attention)
        cells = " ".join(str(round(255 * float(value))) for value in strength.flat)
        box = box_in(Size(100, 100), caption, word) or ()
        looked = f'data-columns="{strength.shape[1]}" data-map="{cells}" '
        looked += f'data-box="{" ".join(f"{value:.2f}" for value in box)}" '
    sure = "" if word.confidence is None else f'data-confidence="{word.confidence:.3f}"'
    return f'<button type="button" aria-pressed="false" {looked}{sure}>{escape(word.text)}</button>'


def _percent(confidence: float | None) -> str:
    """Nothing where it is not known."""
    return "" if confidence is None else f"{confidence:.0%}"


def _allow(page: str, tag: str) -> str:
    """The policy that allows what stands in the page's one <style> or <script>, and no other."""
    content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert content, f"the page has a <{tag}>"
    digest = hashlib.sha256(content[1].encode()).digest()
    return f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'"
