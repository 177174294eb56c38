"""The description in an XMP document, as Adobe's toolkit and ExifTool read it before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from metadata import PACKET, exiftool, exiv2, write_exiftool

from captioner import DataError
from captioner.batch.xmp import describe, descriptions, parse

LIGHTROOM = b"""\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 5.6-c140">
 <!-- kept -->
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" xmlns:d="http://purl.org/dc/elements/1.1/"
    xmp:Rating="4" crs:Exposure2012="+0.35">
   <d:subject><rdf:Bag><rdf:li>beach</rdf:li><rdf:li>M\xc3\xbcritz</rdf:li></rdf:Bag></d:subject>
   <crs:ToneCurve><rdf:Seq><rdf:li>0, 0</rdf:li><rdf:li>255, 255</rdf:li></rdf:Seq></crs:ToneCurve>
   %s
  </rdf:Description>
  <rdf:Description rdf:about="" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:City="Waren"/>
 </rdf:RDF>
</x:xmpmeta>
"""
BOTH = (
    b'<d:description><rdf:Alt><rdf:li xml:lang="de">ein Hund</rdf:li>'
    b'<rdf:li xml:lang="x-default">my dog</rdf:li></rdf:Alt></d:description>'
)
OTHERS = {"Rating": 4, "Subject": ["beach", "Müritz"], "ToneCurve": ["0, 0", "255, 255"], "City": "Waren"}


def test_a_new_document_is_read_by_others(tmp_path: Path):
    text = "a dog & a „Hündin“ <run>"
    (tmp_path / "dog.xmp").write_bytes(document := describe(None, text))
    assert document.startswith(b"<?xpacket begin=")
    assert exiftool(tmp_path / "dog.xmp")["Description"] == text
    assert exiv2(tmp_path / "dog.xmp") == {"Xmp.dc.description": [("x-default", text)]}


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        ("<rdf:Bag><rdf:li>one</rdf:li><rdf:li>two</rdf:li></rdf:Bag>", ["one", "two"]),
        ("<rdf:Seq><rdf:li>one</rdf:li></rdf:Seq>", ["one"]),
        ("<rdf:Alt><rdf:li>one</rdf:li></rdf:Alt>", ["one"]),
        ('<rdf:Alt><rdf:li xml:lang="X-Default">one</rdf:li></rdf:Alt>', ["one"]),
        ('<rdf:Alt><rdf:li xml:lang="x-default"><!-- a -->o<!-- b -->ne</rdf:li></rdf:Alt>', ["one"]),
        ('<rdf:Alt><rdf:li rdf:parseType="Resource"><rdf:value>one</rdf:value></rdf:li></rdf:Alt>', ["one"]),
        ('<rdf:Alt><rdf:li><rdf:Description rdf:value="one" dc:type="x"/></rdf:li></rdf:Alt>', ["one"]),
        ('<rdf:Alt><rdf:li xml:lang="x-default"/></rdf:Alt>', []),
        ("<rdf:Alt> </rdf:Alt>", []),
        ("  ", []),
    ],
)
def test_every_form_is_read_and_becomes_one_that_all_read(tmp_path: Path, body: str, texts: list[str]):
    document = (PACKET % body).encode()
    assert descriptions(parse(document)) == [("x-default", text) for text in texts]
    (tmp_path / "dog.xmp").write_bytes(describe(document, "a cat"))
    expected: dict[str, Any] = {"Xmp.xmp.Rating": "4", "Xmp.dc.description": [("x-default", "a cat")]}
    assert exiv2(tmp_path / "dog.xmp") == expected
    assert exiftool(tmp_path / "dog.xmp")["Description"] == "a cat"
    (tmp_path / "dog.xmp").write_bytes(describe(document, "a cat", "append"))
    assert exiv2(tmp_path / "dog.xmp")["Xmp.dc.description"] == [("x-default", "\n".join([*texts, "a cat"]))]


def test_two_forms_in_one_document_become_one(tmp_path: Path):
    attribute = PACKET.replace('xmp:Rating="4"', 'xmp:Rating="4" dc:description="one"')
    document = (attribute % "<rdf:Bag><rdf:li>two</rdf:li></rdf:Bag>").encode()
    assert [text for _, text in descriptions(parse(document))] == ["one", "two"]
    (tmp_path / "dog.xmp").write_bytes(describe(document, "a cat", "append"))
    expected = {"Xmp.xmp.Rating": "4", "Xmp.dc.description": [("x-default", "one\ntwo\na cat")]}
    assert exiv2(tmp_path / "dog.xmp") == expected


@pytest.mark.parametrize("name", ["tiff:ImageDescription", "exif:UserComment", "acdsee:notes"])
def test_a_description_under_another_name_counts_and_stays(tmp_path: Path, name: str):
    write_exiftool(tmp_path / "dog.xmp", f"-XMP-{name}=my dog", "-XMP:Rating=3")
    document = (tmp_path / "dog.xmp").read_bytes()
    assert [text for _, text in descriptions(parse(document))] == ["my dog"]
    (tmp_path / "dog.xmp").write_bytes(describe(document, "a cat", "append"))
    found = exiftool(tmp_path / "dog.xmp")
    assert [
        found["Description"],
        found[name.partition(":")[2].capitalize()] if "notes" in name else "my dog",
    ] == [
        "my dog\na cat",
        "my dog",
    ]
    assert exiv2(tmp_path / "dog.xmp")["Xmp.xmp.Rating"] == "3"


def test_a_document_of_exiftool_itself_keeps_its_other_languages(tmp_path: Path):
    path = tmp_path / "dog.xmp"
    write_exiftool(path, "-Description=old", "-Description-fr=un chien", "-Rating=3")
    path.write_bytes(describe(path.read_bytes(), "a cat"))
    data = exiftool(path)
    assert [data["Description"], data["Description-fr"], data["Rating"]] == ["a cat", "un chien", 3]


@pytest.mark.parametrize("document", [b"<half", b"<a/>", b""])
def test_what_is_no_xmp_is_refused(document: bytes):
    with pytest.raises(DataError, match=r"^is no XMP"):
        describe(document, "a cat")


@pytest.mark.parametrize(("existing", "expected"), [("overwrite", "a cat"), ("append", "my dog\na cat")])
def test_xmp_of_other_programs_keeps_all_else(tmp_path: Path, existing: Any, expected: str):
    path = tmp_path / "dog.xmp"
    document = LIGHTROOM % BOTH
    for _ in range(2):
        document = describe(document, "a cat", existing)
        path.write_bytes(document)
        data = exiftool(path)
        assert data["Description"] == expected
        assert data["Description-de"] == "ein Hund"
        assert {name: data[name] for name in OTHERS} == OTHERS
        assert str(data["Exposure2012"]) in ("0.35", "+0.35")
    assert b"<!-- kept -->" in document
    assert b"xmlns:d=" in document
    assert document.startswith(b"<?xml version")


@pytest.mark.parametrize("existing", ["overwrite", "append"])
def test_xmp_without_a_description_gets_one(tmp_path: Path, existing: Any):
    (tmp_path / "dog.xmp").write_bytes(describe(LIGHTROOM % b"", "a cat", existing))
    data = exiftool(tmp_path / "dog.xmp")
    assert data["Description"] == "a cat"
    assert {name: data[name] for name in OTHERS} == OTHERS


@pytest.mark.parametrize(
    "short",
    [
        LIGHTROOM.replace(b'xmp:Rating="4"', b'xmp:Rating="4" d:description="my dog"') % b"",
        LIGHTROOM % b"<d:description>my dog</d:description>",
    ],
)
def test_a_description_in_short_form_counts_too(tmp_path: Path, short: bytes):
    assert descriptions(parse(short)) == [("x-default", "my dog")]
    (tmp_path / "dog.xmp").write_bytes(describe(short, "a cat", "append"))
    assert exiftool(tmp_path / "dog.xmp")["Description"] == "my dog\na cat"
    assert exiftool(tmp_path / "dog.xmp")["Rating"] == 4


def test_xmp_of_a_bare_rdf_and_of_utf16(tmp_path: Path):
    bare = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    (tmp_path / "bare.xmp").write_bytes(describe(bare, "a cat"))
    assert exiftool(tmp_path / "bare.xmp")["Description"] == "a cat"
    wide = (LIGHTROOM % BOTH).decode().replace("UTF-8", "UTF-16").encode("utf-16")
    (tmp_path / "wide.xmp").write_bytes(describe(wide, "eine „Katze“"))
    data = exiftool(tmp_path / "wide.xmp")
    assert [data["Description"], data["Subject"]] == ["eine „Katze“", ["beach", "Müritz"]]


def test_hostile_xmp_reads_no_file_and_does_not_explode(tmp_path: Path):
    (tmp_path / "file").write_text("secret")
    body = LIGHTROOM.partition(b"\n")[2] % b"<d:title>&e;</d:title>"
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/file">]>'.encode()
    assert b"secret" not in describe(entity + body, "a cat")
    bomb = b'<!DOCTYPE x [<!ENTITY a "' + b"x" * 1000 + b'">'
    for name in b"bcde":
        bomb += b'<!ENTITY %c "%s">' % (name, b"&%c;" % (name - 1) * 100)
    with pytest.raises(DataError, match="amplification"):
        describe(bomb + b"]>" + body, "a cat")


def test_characters_that_xml_cannot_hold_are_left_out(tmp_path: Path):
    assert b">a cat<" in describe(None, "a \x00c\x1bat")
