"""The description in an XMP document: ISO 16684-1, ``dc:description``, a text for each language.

Programs show the text whose language is ``x-default``. Everything else that a document holds, such as
ratings, keywords or develop settings, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from lxml import etree

from captioner.errors import DataError

__all__ = ["describe", "descriptions", "parse"]

NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "acdsee": "http://ns.acdsee.com/iptc/1.0/",
}
RDF, SUBJECT, ALT, ITEM, VALUE, ABOUT = (
    f"{{{NAMESPACES['rdf']}}}{name}" for name in ("RDF", "Description", "Alt", "li", "value", "about")
)
ARRAYS = {f"{{{NAMESPACES['rdf']}}}{name}" for name in ("Alt", "Bag", "Seq")}
DESCRIPTION = f"{{{NAMESPACES['dc']}}}description"
ELSEWHERE = [
    f"{{{NAMESPACES[prefix]}}}{name}"
    for prefix, name in (
        ("tiff", "ImageDescription"),
        ("exif", "UserComment"),
        ("acdsee", "caption"),
        ("acdsee", "notes"),
    )
]
"""Where programs put a description as well, or instead: digiKam, ACDSee and whatever copies EXIF."""

LANGUAGE, DEFAULT = "{http://www.w3.org/XML/1998/namespace}lang", "x-default"

EMPTY = b"""\
<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""

Text = tuple[str, str]
"""A language and a text; without a language ``x-default``."""


def parse(document: bytes) -> etree._ElementTree:
    """An XMP document as a tree.

    Raises:
        DataError: the document is not XMP.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        tree = etree.ElementTree(etree.fromstring(document, parser))
    except etree.XMLSyntaxError as error:
        raise DataError(f"is no XMP, or damaged ({error.msg})") from error
    if next(tree.iter(RDF), None) is None:
        raise DataError("is no XMP: it has no rdf:RDF")
    return tree


def descriptions(tree: etree._ElementTree) -> list[Text]:
    """All descriptions that a document has, in whatever form and language; ``dc:description`` comes first."""
    return [text for name in (DESCRIPTION, *ELSEWHERE) for text in _texts(tree, name)]


def describe(
    document: bytes | None,
    text: str,
    existing: Literal["overwrite", "append"] = "overwrite",
    others: Sequence[str] = (),
) -> bytes:
    """Set the default description of an XMP document.

    A description that stands in a form of its own, as a Bag, a plain text or an attribute, becomes an Alt, as
    the standard has it: Adobe's toolkit reads nothing of a document in which two forms stand together.

    Args:
        document: the document as it is; None makes a new one.
        text: the description; characters that XML cannot hold are left out.
        existing: what becomes of a default description that is there: "overwrite" replaces it, "append" puts
            the new one on a line below, unless one of its lines is just that. Where there is none, "append"
            adds to what programs would show without one: that of the first language, or else ``others``.
            Descriptions in other languages stay.
        others: descriptions that the photograph has elsewhere.

    Raises:
        DataError: the document is not XMP.
    """
    tree = parse(EMPTY if document is None else document)
    text = "".join(letter for letter in text if letter.isprintable())
    found = _texts(tree, DESCRIPTION)
    defaults = [value for language, value in found if language == DEFAULT]
    if existing == "append":
        shown = defaults or [value for _, value in descriptions(tree)[:1]] or list(others[:1])
        lines = [line for value in shown for line in value.splitlines()]
        text = "\n".join(shown if text in lines else [*shown, text])
    _set_description(tree, [(DEFAULT, text), *(each for each in found if each[0] != DEFAULT)])
    declared = document is not None and document.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml")
    return etree.tostring(tree, encoding="UTF-8", xml_declaration=declared)


def _subjects(tree: etree._ElementTree) -> list[etree._Element]:
    return [subject for rdf in tree.iter(RDF) for subject in rdf.findall(SUBJECT)]


def _texts(tree: etree._ElementTree, name: str) -> list[Text]:
    """The texts of a property that are not empty, in all forms that RDF has for it."""
    found: list[Text] = []
    for subject in _subjects(tree):
        found.append((DEFAULT, str(subject.get(name, ""))))
        for element in subject.findall(name):
            found += _property(element)
    return [(language, text) for language, text in found if text.strip()]


def _property(element: etree._Element) -> Iterator[Text]:
    array = next((child for child in element if child.tag in ARRAYS), None)
    for item in [element] if array is None else array.findall(ITEM):
        # a value with qualifiers stands in an rdf:value, which may be an attribute too
        values = [str(each.get(VALUE)) for each in item.iter() if each.get(VALUE)]
        values += [_text(each) for each in item.iter(VALUE)]
        language = str(item.get(LANGUAGE, DEFAULT))
        yield DEFAULT if language.lower() == DEFAULT else language, (values or [_text(item)])[0]


def _text(element: etree._Element) -> str:
    return str(element.xpath("string()")).strip()  # without comments, unlike itertext


def _set_description(tree: etree._ElementTree, texts: Sequence[Text]) -> None:
    """Let a document have one ``dc:description``, an Alt of these texts, at the place of the first it had."""
    subjects = _subjects(tree)
    if not subjects:
        rdf = next(tree.iter(RDF))
        subjects = [etree.SubElement(rdf, SUBJECT, {ABOUT: ""})]
    elements = [element for subject in subjects for element in subject.findall(DESCRIPTION)]
    for subject in subjects:
        subject.attrib.pop(DESCRIPTION, "")
    if elements:
        first, tail = elements[0], elements[0].tail
        first.clear()
        first.tail = tail
    else:
        first = etree.SubElement(subjects[0], DESCRIPTION, nsmap={"dc": NAMESPACES["dc"]})
    for other in elements[1:]:
        parent = other.getparent()
        assert parent is not None
        parent.remove(other)
    alternatives = etree.SubElement(first, ALT)
    for language, text in texts:
        etree.SubElement(alternatives, ITEM, {LANGUAGE: language}).text = text
