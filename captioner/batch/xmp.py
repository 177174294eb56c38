"""The description in an XMP document: ISO 16684-1, ``dc:description``, a text for each language.

Programs show the text whose language is ``x-default``. Everything else that a document holds, such as
ratings, keywords, develop settings or descriptions in other languages, stays as it is.
"""

from __future__ import annotations

from lxml import etree

from captioner.errors import DataError

__all__ = ["describe"]

NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
}
DESCRIPTION = f"{{{NAMESPACES['dc']}}}description"
SUBJECT, ALT, ITEM = (f"{{{NAMESPACES['rdf']}}}{name}" for name in ("Description", "Alt", "li"))
LANGUAGE, DEFAULT = "{http://www.w3.org/XML/1998/namespace}lang", "x-default"

EMPTY = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default"/>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def describe(document: bytes | None, text: str, existing: str = "overwrite") -> bytes:
    """Set the default description of an XMP document.

    Args:
        document: the document as it is; None makes a new one.
        text: the description; characters that XML cannot hold are left out.
        existing: what becomes of a default description that is there: "skip" keeps it, "overwrite" replaces
            it, "append" puts the new one on a line below, unless one of its lines is just that.

    Raises:
        DataError: the document is not XMP.
    """
    tree = _parse(EMPTY.encode() if document is None else document)
    text = "".join(letter for letter in text if letter.isprintable())
    item = _default_item(tree)
    old = item.text or ""
    if document is not None and old and existing == "skip":
        return document
    if old and existing == "append":
        text = old if text in old.splitlines() else f"{old}\n{text}"
    item.text = text
    declared = document is not None and document.lstrip(b"\xef\xbb\xbf").startswith(b"<?xml")
    return etree.tostring(tree, encoding="UTF-8", xml_declaration=declared)


def _parse(document: bytes) -> etree._ElementTree:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.ElementTree(etree.fromstring(document, parser))
    except etree.XMLSyntaxError as error:
        raise DataError(f"is no XMP, or damaged ({error.msg})") from error


def _default_item(tree: etree._ElementTree) -> etree._Element:
    """The ``rdf:li`` of the default description, made where there is none."""
    alternatives = _alternatives(tree)
    for item in alternatives.findall("rdf:li", NAMESPACES):
        if item.get(LANGUAGE) == DEFAULT:
            return item
    item = etree.Element(ITEM, {LANGUAGE: DEFAULT})
    alternatives.insert(0, item)  # where readers that know no languages look
    return item


def _alternatives(tree: etree._ElementTree) -> etree._Element:
    """The ``rdf:Alt`` of the descriptions, made where there is none; a plain text becomes its default."""
    rdf = next(tree.iter(f"{{{NAMESPACES['rdf']}}}RDF"), None)
    if rdf is None:
        raise DataError("is no XMP: it has no rdf:RDF")
    subjects = rdf.findall("rdf:Description", NAMESPACES) or [
        etree.SubElement(rdf, SUBJECT, {f"{{{NAMESPACES['rdf']}}}about": ""})
    ]
    found = next((child for subject in subjects for child in subject.findall(DESCRIPTION)), None)
    if found is None:
        found = etree.SubElement(subjects[0], DESCRIPTION, nsmap={"dc": NAMESPACES["dc"]})
    alternatives = found.find(ALT)
    if alternatives is not None:
        return alternatives
    plain = (found.text or "").strip()
    for subject in subjects:  # RDF's short form
        if DESCRIPTION in subject.attrib:
            plain = str(subject.attrib.pop(DESCRIPTION))
    found.text = None
    alternatives = etree.SubElement(found, ALT)
    if plain:
        etree.SubElement(alternatives, ITEM, {LANGUAGE: DEFAULT}).text = plain
    return alternatives
