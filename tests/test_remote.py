"""Photographs by URI, from the one store that every machine has: its own files, as pyarrow reads them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from fakes import FakeCaptioner
from images import draw_scene, encode
from tiny import tiny_captioner

from captioner.batch.engine import BatchCaptioner
from captioner.batch.finding import find_items
from captioner.batch.items import Item
from captioner.batch.remote import is_remote, list_files, read_file
from captioner.cli import main
from captioner.errors import ImageError, OptionsError

PHOTO = encode(draw_scene(), "JPEG")


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """Photographs with names that are hard on URIs, in two folders, and things that are none."""
    for name in (
        "b.jpg",
        "a 100% #1?.JPG",
        "é.jpg",
        ".hidden.jpg",
        "notes.txt",
        "more/c.jpg",
        ".trash/d.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PHOTO)
    return tmp_path


def keys(*inputs: str, **options: bool | list[str]) -> list[str]:
    return [item.key for item in find_items(inputs, **options)]


def test_a_folder_by_its_uri(bucket: Path):
    uri = f"file://{bucket}"
    flat = [f"{uri}/a 100% #1?.JPG", f"{uri}/b.jpg", f"{uri}/é.jpg"]
    assert keys(uri) == keys(f"{uri}/") == flat
    assert keys(uri, recursive=True) == [*flat[:2], f"{uri}/more/c.jpg", flat[2]]
    assert keys(uri, recursive=True, exclude=["more", "b.*"]) == [flat[0], flat[2]]


def test_photographs_and_lists_of_them_by_uri(bucket: Path, tmp_path_factory: pytest.TempPathFactory):
    uris = [f"file://{bucket}/é.jpg", f"file://{bucket}/a 100% #1?.JPG"]
    listed = tmp_path_factory.mktemp("lists") / "photos.lst"
    listed.write_text("\n".join(uris), encoding="utf-8")
    assert keys(*uris) == keys(str(listed)) == keys(f"file://{listed}") == uris


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["b.jpg", "é.jpg"]),
        ("[ab]*", ["a 100% #1?.JPG", "b.jpg"]),
        ("?.jpg", ["b.jpg", "é.jpg"]),
        ("*/*.jpg", ["more/c.jpg"]),
        ("**/*.jpg", ["b.jpg", "more/c.jpg", "é.jpg"]),
        (".*.jpg", []),  # found, and left out as in a folder of this machine
        (".trash/*", [".trash/d.jpg"]),
        ("m*", []),
    ],
)
def test_globs(pattern: str, found: list[str], bucket: Path):
    uri = f"file://{bucket}"
    items = list(find_items([f"{uri}/{pattern}"]))
    assert [item.key for item in items if not item.problem] == [f"{uri}/{name}" for name in found]
    local = [str(Path(key).relative_to(bucket)) for key in keys(f"{bucket}/{pattern}")]
    assert found == [] or local == found, "as on this machine"


def test_a_folder_that_a_glob_matches_is_entered_if_asked(bucket: Path):
    assert keys(f"file://{bucket}/m*", recursive=True) == [f"file://{bucket}/more/c.jpg"]


def test_a_list_that_is_not_there_and_a_glob_that_matches_nothing(tmp_path: Path):
    missing, nothing = find_items([f"file://{tmp_path}/none.txt", f"file://{tmp_path}/*.png"])
    assert missing.problem.startswith("cannot be read: ")
    assert nothing.problem == "matches no file"


def test_what_is_read_is_what_is_there(bucket: Path):
    captioner = BatchCaptioner(tiny_captioner())
    near, far = Item("a", str(bucket / "b.jpg")), Item("a", f"file://{bucket}/a 100% #1?.JPG")
    assert far.source() == PHOTO
    assert captioner.prepare(far).content.equal(captioner.prepare(near).content)
    (record,) = captioner.records([far], [captioner.prepare(far)])
    assert record["caption"]


def test_a_shard_by_its_uri(tmp_path: Path):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("one.jpg", "notes.txt", "two.png"):
            member = tarfile.TarInfo(name)
            member.size = len(PHOTO)
            shard.addfile(member, io.BytesIO(PHOTO))
    uri = f"file://{tmp_path}/shard.tar"
    items = list(find_items([uri]))
    assert [item.key for item in items] == [f"{uri}!one.jpg", f"{uri}!two.png"]
    assert [item.source() for item in items] == [PHOTO, PHOTO]


@pytest.mark.parametrize("name", ["none.jpg", "none", "none.tar", "none/at/all"])
def test_what_is_not_there_is_found_out(name: str, tmp_path: Path):
    (item,) = find_items([f"file://{tmp_path}/{name}"])
    assert item.key == f"file://{tmp_path}/{name}"
    with pytest.raises(ImageError, match=r"cannot be read: .*No such file") as caught:
        item.source()
    assert "\n" not in str(caught.value)


def test_a_wrong_glob_is_a_wrong_input(bucket: Path):
    with pytest.raises(OptionsError, match=r"e\*\*: Invalid pattern: '\*\*' can only be an entire"):
        keys(f"file://{bucket}/more**")


def test_an_unknown_scheme_is_a_wrong_input():
    with pytest.raises(OptionsError, match=r"ftp://example\.org cannot be read: s3, gs"):
        list_files("ftp://example.org/photos", recursive=False)
    with pytest.raises(OptionsError, match="ftp"):
        read_file("ftp://example.org/photo.jpg")


@pytest.mark.parametrize(
    ("path", "remote"),
    [("s3://bucket/a.jpg", True), ("gs://b", True), ("abfs://c@a.dfs.core.windows.net/x", True)]
    + [
        (path, False)
        for path in ("a.jpg", "/a/b.jpg", "C://a.jpg", "C:\\a.jpg", "a/s3://b", "s3:/a", "S3 x://")
    ],
)
def test_what_is_remote(path: str, remote: bool):
    assert is_remote(path) == remote


def test_the_command_takes_uris(bucket: Path, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("out") / "captions.jsonl"
    argv = ["batch", f"file://{bucket}", "--recursive", "--dedupe", "--output", str(output)]
    assert main(argv, load=lambda name, /, *, device, dtype: FakeCaptioner()) == 0
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["file"] for record in found] == keys(f"file://{bucket}", recursive=True)
    assert {record["caption"] for record in found} == {"a photo 96 wide and 64 high"}
    assert [record.get("duplicate_of") for record in found] == [None, *[found[0]["file"]] * 3]


@pytest.mark.parametrize("wrong", ["ftp://example.org/photos", "file:///a**b.jpg"])
def test_a_wrong_uri_is_one_line(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["batch", wrong, "--output", str(tmp_path / "captions.jsonl")]
    assert main(argv, load=lambda name, /, *, device, dtype: FakeCaptioner()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"captioner: {wrong.removesuffix('/photos')}")
    assert len(said.splitlines()) == 1


def test_sidecars_of_a_store_are_refused(bucket: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["batch", f"file://{bucket}", "--sidecar", "txt", "--output", str(bucket / "captions.jsonl")]
    assert main(argv, load=lambda name, /, *, device, dtype: FakeCaptioner()) == 2
    assert "leave out --sidecar" in capsys.readouterr().err
    assert not (bucket / "captions.jsonl").exists()
