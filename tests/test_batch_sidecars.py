"""Captions beside the photographs: their names, and what of other people is kept."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

import pytest
from images import draw_scene, encode
from metadata import PACKET, exiftool, exiv2, write_exiftool

from captioner import DataError
from captioner.batch.sidecars import FOREIGN, Sidecars

RECORD = {
    "file": "dog.jpg",
    "model": "m",
    "width": 96,
    "height": 64,
    "caption": "a dog & a „Hündin“ <run>",
    "confidence": 0.4,
    "logprob": -3.0,
}
TAKEOUT = '{"title":"dog.jpg","description":"In the garden","photoTakenTime":{"timestamp":"1500000000"}}\n'
BAG = "<rdf:Bag><rdf:li>In the garden</rdf:li></rdf:Bag>"
GERMAN = '<rdf:Alt><rdf:li xml:lang="de-DE">Im Garten, 1987</rdf:li></rdf:Alt>'


def record(caption: str, **more: Any) -> dict[str, Any]:
    return {**RECORD, "caption": caption, **more}


@pytest.fixture
def photo(tmp_path: Path) -> str:
    (tmp_path / "dog.jpg").write_bytes(encode(draw_scene(), "JPEG"))
    return str(tmp_path / "dog.jpg")


@pytest.mark.parametrize("kind", ["txt", "caption", "xmp", "json"])
def test_the_photograph_is_not_touched_and_nothing_else_is_left(photo: str, kind: Any):
    before = Path(photo).stat()
    Sidecars(kind).write(photo, RECORD)
    after = Path(photo).stat()
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (
        after.st_mtime_ns,
        after.st_ino,
        after.st_size,
    )
    assert {path.name for path in Path(photo).parent.iterdir()} == {"dog.jpg", f"dog.{kind}"}


def test_names(photo: str):
    folder = Path(photo).parent
    assert Sidecars("xmp").path(photo) == folder / "dog.xmp"
    assert Sidecars("xmp", naming="full").path(photo) == folder / "dog.jpg.xmp"
    (folder / "dog.jpg.xmp").touch()
    assert Sidecars("xmp").path(photo) == folder / "dog.jpg.xmp"
    assert Sidecars("txt").path(str(folder / "a.b.tar.JPG")) == folder / "a.b.tar.txt"


def test_photographs_that_share_a_stem_do_not_share_a_sidecar(tmp_path: Path):
    for name in ("dog.jpg", "dog.HEIC", "Dog.png", "cat.jpg"):
        (tmp_path / name).touch()
    names = ("dog.jpg", "dog.HEIC", "Dog.png", "cat.jpg")
    found = [Sidecars("txt").path(str(tmp_path / name)).name for name in names]
    assert found == ["dog.jpg.txt", "dog.HEIC.txt", "Dog.png.txt", "cat.txt"]


def test_the_short_name_beside_a_raw_file_is_the_raw_files(tmp_path: Path):
    for name in ("dog.jpg", "dog.CR2"):
        (tmp_path / name).touch()
    names = ("dog.jpg", "dog.CR2")
    assert [Sidecars("xmp").path(str(tmp_path / name)).name for name in names] == [f"{n}.xmp" for n in names]
    (tmp_path / "dog.xmp").write_text(PACKET % GERMAN, encoding="utf-8")
    found = [Sidecars("xmp").path(str(tmp_path / name)).name for name in names]
    assert found == ["dog.jpg.xmp", "dog.xmp"]
    for name in names:  # Lightroom shows it for both
        assert str(Sidecars("xmp").write(str(tmp_path / name), RECORD)) == "dog.xmp has a description already"


def test_a_sidecar_in_another_case_is_the_same_one(tmp_path: Path):
    for name in ("dog.jpg", "DOG.XMP", "cat.jpg", "Cat.JPG.Xmp", "a.jpg", "A.JPG", "A.JPG.XMP"):
        (tmp_path / name).touch()
    photos = ("dog.jpg", "cat.jpg", "a.jpg", "A.JPG")
    names = [Sidecars("xmp").path(str(tmp_path / name)).name for name in photos]
    assert names == ["DOG.XMP", "Cat.JPG.Xmp", "a.jpg.xmp", "A.JPG.XMP"]


def test_a_name_that_is_as_long_as_a_name_can_be(tmp_path: Path):
    photo = tmp_path / ("a" * 251 + ".jpg")
    photo.touch()
    Sidecars("txt").write(str(photo), RECORD)
    assert photo.with_suffix(".txt").read_text(encoding="utf-8") == f"{RECORD['caption']}\n"
    assert len(list(tmp_path.iterdir())) == 2


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


@pytest.mark.parametrize("content", [b"", b" \r\n", b"\xef\xbb\xbf", b"\xff\xfe"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
@pytest.mark.parametrize("kind", ["txt", "xmp", "json"])
def test_an_empty_file_is_none(photo: str, kind: Any, existing: Any, content: bytes):
    Path(photo).with_suffix(f".{kind}").write_bytes(content)
    sidecars = Sidecars(kind, existing=existing)
    assert sidecars.write(photo, RECORD) is None
    assert sidecars.written == 1
    new = Path(photo).with_suffix(f".{kind}").read_bytes()
    Path(photo).with_suffix(f".{kind}").unlink()
    sidecars.write(photo, RECORD)
    assert Path(photo).with_suffix(f".{kind}").read_bytes() == new


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_line_is_added_in_the_files_own_encoding_and_with_its_ends(
    photo: str, mark: bytes, encoding: str, end: str
):
    path = Path(photo).with_suffix(".txt")
    before = f"Mülheim{end}am Fluß{end}"
    path.write_bytes(mark + before.encode(encoding))
    for _ in range(2):
        Sidecars("txt", existing="append").write(photo, RECORD)
        assert path.read_bytes() == mark + f"{before}{RECORD['caption']}{end}".encode(encoding)


def test_a_line_that_was_not_ended_is_ended_like_the_others(photo: str):
    path = Path(photo).with_suffix(".txt")
    path.write_bytes(b"one\r\ntwo")
    Sidecars("txt", existing="append").write(photo, record("three"))
    assert path.read_bytes() == b"one\r\ntwo\r\nthree\r\n"


def test_an_unknown_encoding_takes_what_is_the_same_in_all_or_refuses(photo: str):
    path = Path(photo).with_suffix(".txt")
    path.write_bytes("Mülheim\r\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"^dog\.txt is in an encoding that is not known"):
        Sidecars("txt", existing="append").write(photo, RECORD)
    assert path.read_bytes() == "Mülheim\r\n".encode("cp1252")
    Sidecars("txt", existing="append").write(photo, record("a dog"))
    assert path.read_bytes() == "Mülheim\r\na dog\r\n".encode("cp1252")
    path.write_bytes(wide := "no mark\n".encode("utf-16-le"))
    with pytest.raises(DataError, match="encoding"):
        Sidecars("txt", existing="append").write(photo, record("a dog"))
    assert path.read_bytes() == wide


def test_a_text_of_some_form(photo: str):
    sidecars = Sidecars("caption", existing="append", form="ohwx woman, {caption} {0}")
    for _ in range(2):
        sidecars.write(photo, record("a dog"))
    sidecars.write(photo, record("a cat {caption}"))
    text = Path(photo).with_suffix(".caption").read_text()
    assert text == "ohwx woman, a dog {0}\nohwx woman, a cat {caption} {0}\n"


OLD = record("old")


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", OLD), ("overwrite", RECORD), ("append", [OLD, RECORD])],
)
def test_json_that_is_there(photo: str, existing: Any, expected: Any):
    path = Path(photo).with_suffix(".json")
    path.write_text(json.dumps(OLD))
    for _ in range(2):
        left = Sidecars("json", existing=existing).write(photo, RECORD)
        assert str(left) == ("dog.json has a caption already" if existing == "skip" else "None")
        assert json.loads(path.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("content", [TAKEOUT, "[]", "[1]", '{"caption": "mine"}', "{half", f"[{TAKEOUT}]"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_json_of_another_program_stays(photo: str, existing: Any, content: str):
    path = Path(f"{photo}.json")
    path.write_text(content)
    if existing == "skip":
        assert Sidecars("json").write(photo, RECORD) == ("dog.jpg.json", FOREIGN)
    else:
        with pytest.raises(DataError, match=r"^dog\.jpg\.json is no JSON of ours, and stays"):
            Sidecars("json", existing=existing).write(photo, RECORD)
    assert path.read_text() == content
    assert not Path(photo).with_suffix(".json").exists()


@pytest.mark.parametrize("content", [b"<half", b"<a/>", b"\x00\x01"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_xmp_that_is_damaged_is_kept_and_named(photo: str, existing: Any, content: bytes):
    path = Path(photo).with_suffix(".xmp")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^dog\.xmp is no XMP"):
        Sidecars("xmp", existing=existing).write(photo, RECORD)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["txt", "json", "xmp"])
def test_what_is_just_as_we_wrote_it_is_brought_up_to_date(photo: str, kind: Any):
    path = Path(photo).with_suffix(f".{kind}")
    Sidecars(kind).write(photo, OLD)
    assert Sidecars(kind).write(photo, RECORD) is not None
    assert Sidecars(kind).write(photo, RECORD, previous=OLD) is None
    new = path.read_bytes()
    assert b"old" not in new
    path.unlink()
    Sidecars(kind).write(photo, RECORD)
    assert path.read_bytes() == new


@pytest.mark.parametrize("kind", ["txt", "json", "xmp"])
def test_what_a_person_has_changed_since_is_left(photo: str, kind: Any):
    path = Path(photo).with_suffix(f".{kind}")
    Sidecars(kind).write(photo, OLD)
    path.write_bytes(path.read_bytes().replace(b"old", b"my old dog"))
    before = path.read_bytes()
    assert Sidecars(kind).write(photo, RECORD, previous=OLD) is not None
    assert path.read_bytes() == before


def test_a_read_only_sidecar_stays(photo: str):
    path = Path(photo).with_suffix(".txt")
    path.write_text("mine")
    path.chmod(0o444)
    with pytest.raises(DataError, match="read-only"):
        Sidecars("txt", existing="overwrite").write(photo, RECORD)
    assert path.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_sidecar_keeps_its_owner(photo: str):
    path = Path(photo).with_suffix(".txt")
    path.write_text("mine")
    path.chmod(0o600)
    os.chown(path, 12345, 23456)
    Sidecars("txt", existing="append").write(photo, RECORD)
    status = path.stat()
    assert [status.st_uid, status.st_gid, status.st_mode & 0o777] == [12345, 23456, 0o600]


def test_no_sidecar_takes_the_place_of_a_file_of_the_run(photo: str):
    path = Path(photo).with_suffix(".txt")
    sidecars = Sidecars("txt", existing="overwrite", ours={str(path)})
    with pytest.raises(DataError, match=r"^dog\.txt would take the place of a file of this run"):
        sidecars.write(photo, RECORD)
    assert not path.exists()


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
@pytest.mark.parametrize("body", [BAG, GERMAN, BAG.replace("Bag", "Seq"), "In the garden"])
def test_other_peoples_xmp_stays_readable(photo: str, body: str, existing: Any):
    """By Adobe's toolkit, which exiv2 has, and by exiftool."""
    path = Path(photo).with_suffix(".xmp")
    path.write_text(PACKET % body, encoding="utf-8")
    before = path.read_bytes()
    theirs = "Im Garten, 1987" if body == GERMAN else "In the garden"
    for _ in range(2):
        left = Sidecars("xmp", existing=existing).write(photo, record("a cat"))
        found = exiv2(path)
        assert found["Xmp.xmp.Rating"] == "4"
        expected = {"skip": [theirs], "overwrite": ["a cat"], "append": [f"{theirs}\na cat"]}[existing]
        expected += ["Im Garten, 1987"] if body == GERMAN and existing != "skip" else []
        assert [text for _, text in found["Xmp.dc.description"]] == expected
        assert exiftool(path)["Rating"] == 4
        if existing == "skip":
            assert str(left) == "dog.xmp has a description already"
            assert path.read_bytes() == before
        else:
            assert exiftool(path)["Description"] == expected[0]
            assert found["Xmp.dc.description"][0][0] == "x-default"


@pytest.mark.parametrize(
    ("other", "naming"), [("dog.jpg.xmp", "stem"), ("dog.xmp", "full"), ("DOG.XMP", "full")]
)
def test_xmp_of_the_other_name_is_used_not_hidden(photo: str, other: str, naming: Any):
    path = Path(photo).with_name(other)
    path.write_text(PACKET % "<rdf:Alt/>", encoding="utf-8")
    Sidecars("xmp", naming=naming).write(photo, record("a cat"))
    assert [exiv2(path)["Xmp.xmp.Rating"], exiftool(path)["Description"]] == ["4", "a cat"]
    assert len(list(path.parent.iterdir())) == 2


def test_a_description_in_xmp_of_the_other_name_counts(photo: str):
    full, stem = Path(f"{photo}.xmp"), Path(photo).with_suffix(".xmp")
    full.write_text(PACKET % "", encoding="utf-8")
    stem.write_text(PACKET % GERMAN, encoding="utf-8")
    before = full.read_bytes()
    assert str(Sidecars("xmp").write(photo, record("a cat"))) == "dog.xmp has a description already"
    assert full.read_bytes() == before
    Sidecars("xmp", existing="append").write(photo, record("a cat"))
    assert exiftool(full)["Description"] == "Im Garten, 1987\na cat"


EMBEDDED = [
    "-XMP-dc:Description",
    "-XMP-dc:Description-de",
    "-IPTC:Caption-Abstract",
    "-EXIF:ImageDescription",
]
EMBEDDED += ["-EXIF:UserComment", "-EXIF:XPComment", "-XMP-tiff:ImageDescription"]


@pytest.mark.parametrize("place", EMBEDDED)
def test_a_description_inside_the_photograph_counts(photo: str, place: str):
    write_exiftool(photo, f"{place}=In the gärden", "-codedcharacterset=utf8")
    before = Path(photo).read_bytes()
    assert str(Sidecars("xmp").write(photo, record("a cat"))) == "dog.jpg has a description already"
    assert not Path(photo).with_suffix(".xmp").exists()
    Sidecars("xmp", existing="append").write(photo, record("a cat"))
    assert exiftool(Path(photo).with_suffix(".xmp"))["Description"] == "In the gärden\na cat"
    Sidecars("xmp", existing="overwrite").write(photo, record("a cat"))
    assert exiftool(Path(photo).with_suffix(".xmp"))["Description"] == "a cat"
    assert Path(photo).read_bytes() == before
    assert Sidecars("txt").write(photo, RECORD) is None, "a text hides no description"
