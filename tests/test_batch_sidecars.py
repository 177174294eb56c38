"""Captions beside the photographs: names, what is kept, and XMP as ExifTool reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from captioner import DataError
from captioner.batch.sidecars import Sidecars
from captioner.batch.xmp import describe

RECORD = {"file": "dog.jpg", "model": "m", "caption": "a dog & a „Hündin“ <run>", "confidence": 0.4}

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


def exiftool(path: Path) -> dict[str, Any]:
    if shutil.which("exiftool") is None:
        pytest.skip("no exiftool on this machine; install Debian's package libimage-exiftool-perl")
    command = ["exiftool", "-json", "-struct", "-charset", "filename=utf8", str(path)]
    (data,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert "Warning" not in data
    return dict(data)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "dog.jpg").write_bytes(b"a photograph")
    return str(tmp_path / "dog.jpg")


@pytest.mark.parametrize("kind", ["txt", "xmp", "json"])
def test_the_photograph_is_not_touched_and_nothing_else_is_left(photo: str, kind: Any):
    before = Path(photo).stat()
    Sidecars(kind).write(photo, RECORD)
    after = Path(photo).stat()
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (
        after.st_mtime_ns,
        after.st_ino,
        after.st_size,
    )
    assert sorted(path.name for path in Path(photo).parent.iterdir()) == ["dog.jpg", f"dog.{kind}"]


def test_names(photo: str):
    folder = Path(photo).parent
    assert Sidecars("xmp").path(photo) == folder / "dog.xmp"
    assert Sidecars("xmp", naming="full").path(photo) == folder / "dog.jpg.xmp"
    (folder / "dog.jpg.xmp").touch()
    assert Sidecars("xmp").path(photo) == folder / "dog.jpg.xmp"
    assert Sidecars("txt").path(str(folder / "a.b.tar.JPG")) == folder / "a.b.tar.txt"


def test_photographs_that_share_a_stem_do_not_share_a_sidecar(tmp_path: Path):
    for name in ("dog.jpg", "dog.HEIC", "cat.jpg", "cat.cr2"):
        (tmp_path / name).touch()
    names = [Sidecars("txt").path(str(tmp_path / name)).name for name in ("dog.jpg", "dog.HEIC", "cat.jpg")]
    assert names == ["dog.jpg.txt", "dog.HEIC.txt", "cat.txt"]


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("skip", "my own words"),
        ("overwrite", "a dog & a „Hündin“ <run>\n"),
        ("append", "my own words\na dog & a „Hündin“ <run>\n"),
    ],
)
def test_a_text_that_is_there(photo: str, existing: Any, expected: str):
    path = Path(photo).with_suffix(".txt")
    path.write_text("my own words", encoding="utf-8")
    for _ in range(2):
        Sidecars("txt", existing=existing).write(photo, RECORD)
        assert path.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", {"caption": "old"}), ("overwrite", RECORD), ("append", [{"caption": "old"}, RECORD])],
)
def test_json_that_is_there(photo: str, existing: Any, expected: Any):
    path = Path(photo).with_suffix(".json")
    path.write_text('{"caption": "old"}')
    for _ in range(2):
        Sidecars("json", existing=existing).write(photo, RECORD)
        assert json.loads(path.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize(
    ("kind", "content"), [("json", b"{half"), ("xmp", b"<half"), ("xmp", b"<a/>"), ("xmp", b"")]
)
def test_what_is_damaged_is_kept_and_named(photo: str, kind: Any, content: bytes):
    path = Path(photo).with_suffix(f".{kind}")
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no "):
        Sidecars(kind, existing="append").write(photo, RECORD)
    assert path.read_bytes() == content


def test_new_xmp_is_read_by_exiftool(photo: str):
    Sidecars("xmp").write(photo, RECORD)
    data = exiftool(Path(photo).with_suffix(".xmp"))
    assert data["Description"] == RECORD["caption"]
    tree = etree.parse(Path(photo).with_suffix(".xmp"))
    (item,) = tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert item.get("{http://www.w3.org/XML/1998/namespace}lang") == "x-default"
    assert Path(photo).with_suffix(".xmp").read_bytes().startswith(b"<?xpacket begin=")


@pytest.mark.parametrize(
    ("existing", "expected"), [("skip", "my dog"), ("overwrite", "a cat"), ("append", "my dog\na cat")]
)
def test_xmp_of_other_programs_keeps_all_else(tmp_path: Path, existing: str, expected: str):
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


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_xmp_without_a_description_gets_one(tmp_path: Path, existing: str):
    (tmp_path / "dog.xmp").write_bytes(describe(LIGHTROOM % b"", "a cat", existing))
    data = exiftool(tmp_path / "dog.xmp")
    assert data["Description"] == "a cat"
    assert {name: data[name] for name in OTHERS} == OTHERS


def test_xmp_with_a_description_in_another_language_only_gets_a_default_first(tmp_path: Path):
    german = b'<d:description><rdf:Alt><rdf:li xml:lang="de">ein Hund</rdf:li></rdf:Alt></d:description>'
    (tmp_path / "dog.xmp").write_bytes(document := describe(LIGHTROOM % german, "a cat", "skip"))
    data = exiftool(tmp_path / "dog.xmp")
    assert [data["Description"], data["Description-de"]] == ["a cat", "ein Hund"]
    assert document.index(b"a cat") < document.index(b"ein Hund")


@pytest.mark.parametrize(
    "short",
    [
        LIGHTROOM.replace(b'xmp:Rating="4"', b'xmp:Rating="4" d:description="my dog"') % b"",
        LIGHTROOM % b"<d:description>my dog</d:description>",
    ],
)
def test_a_description_in_short_form_counts_too(tmp_path: Path, short: bytes):
    assert describe(short, "a cat", "skip") == short
    (tmp_path / "dog.xmp").write_bytes(describe(short, "a cat", "append"))
    assert exiftool(tmp_path / "dog.xmp")["Description"] == "my dog\na cat"
    assert exiftool(tmp_path / "dog.xmp")["Rating"] == 4


def test_xmp_that_is_skipped_is_the_same_to_the_byte(photo: str):
    path = Path(photo).with_suffix(".xmp")
    path.write_bytes(LIGHTROOM % BOTH)
    Sidecars("xmp", existing="skip").write(photo, RECORD)
    assert path.read_bytes() == LIGHTROOM % BOTH


def test_xmp_of_exiftool_itself(photo: str):
    path = Path(photo).with_suffix(".xmp")
    if shutil.which("exiftool") is None:
        pytest.skip("no exiftool on this machine; install Debian's package libimage-exiftool-perl")
    command = ["exiftool", "-q", "-Description=old", "-Description-fr=un chien", "-Rating=3", str(path)]
    subprocess.run(command, check=True)
    Sidecars("xmp", existing="overwrite").write(photo, RECORD)
    data = exiftool(path)
    assert [data["Description"], data["Description-fr"], data["Rating"]] == [RECORD["caption"], "un chien", 3]


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
