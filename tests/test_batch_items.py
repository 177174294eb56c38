"""Which photographs a batch has: every kind of input, in a stable order, each once."""

from __future__ import annotations

import io
import os
import random
import sys
import tarfile
from pathlib import Path

import pytest
from images import draw_scene, encode

from captioner import ImageError
from captioner.batch.items import Item, find_items, read_list
from captioner.image import decode_image

JPEG = encode(draw_scene(), "JPEG")


def keys(*inputs: str | Path, **settings: object) -> list[str]:
    return [item.key for item in find_items([str(name) for name in inputs], **settings)]  # type: ignore[arg-type]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Photographs in nested folders, among files that are none."""
    names = ["b.jpg", "a.PNG", "Z.webp", "notes.txt", "b.xmp", ".hidden.jpg", "sub/c.jpg", "sub/deep/d.heic"]
    random.Random(0).shuffle(names)
    for name in [*names, ".thumbnails/e.jpg"]:
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)
    return tmp_path / "library"


def test_a_folder_gives_its_photographs_by_name(library: Path):
    assert keys(library) == [f"{library}/{name}" for name in ("Z.webp", "a.PNG", "b.jpg")]


def test_a_folder_is_entered_in_the_place_of_its_name(library: Path):
    expected = ["Z.webp", "a.PNG", "b.jpg", "sub/c.jpg", "sub/deep/d.heic"]
    assert keys(library, recursive=True) == [f"{library}/{name}" for name in expected]


def test_keys_are_paths_as_given(library: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(library)
    assert keys("sub", "b.jpg") == ["sub/c.jpg", "b.jpg"]
    assert keys("./sub/") == ["./sub/c.jpg"]


def test_each_key_comes_once_in_the_order_of_the_inputs(library: Path):
    once = keys(library / "sub", library, library / "b.jpg", library / "sub/c.jpg", recursive=True)
    assert once == [
        f"{library}/{name}" for name in ("sub/c.jpg", "sub/deep/d.heic", "Z.webp", "a.PNG", "b.jpg")
    ]


def test_loops_of_links_end_and_a_linked_folder_is_entered_once(library: Path):
    without = keys(library, recursive=True)
    (library / "sub" / "up").symlink_to(library)
    (library / "sub" / "self.jpg").symlink_to(library / "sub" / "self.jpg")
    (library / "zz").symlink_to(library / "sub" / "deep")
    assert keys(library, recursive=True) == sorted([*without, f"{library}/sub/self.jpg"], key=os.fsencode)


def test_a_file_that_is_named_is_taken_whatever_its_suffix(library: Path):
    (library / "noname").write_bytes(JPEG)
    named = [library / "noname", library / ".hidden.jpg", library / "missing.jpg"]
    assert keys(*named) == [str(path) for path in named]


def test_globs(library: Path):
    assert keys(library / "*.jpg") == [f"{library}/b.jpg"]
    assert keys(library / "*") == keys(library)
    assert keys(library / "*", recursive=True) == keys(library, recursive=True)
    assert keys(library / "**" / "*.jpg") == [f"{library}/b.jpg", f"{library}/sub/c.jpg"]
    (item,) = find_items([f"{library}/*.gif"])
    assert item.problem == "matches no file"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(library: Path):
    odd = library / "IMG[1].jpg"
    odd.write_bytes(JPEG)
    assert keys(odd) == [str(odd)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
def test_lists_have_a_path_a_line(library: Path, tmp_path: Path, end: str):
    names = ["sub", "b.jpg", "with space .jpg", "nowhere.jpg"]
    text = end.join(f"{library}/{name}" for name in names) + end + end
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    expected = ["sub/c.jpg", "b.jpg", "with space .jpg", "nowhere.jpg"]
    assert keys(tmp_path / "list.txt") == [f"{library}/{name}" for name in expected]
    assert read_list(text.encode()) == [f"{library}/{name}" for name in names]


@pytest.mark.parametrize("name", ["b.txt", "b.json", "b.xmp", "b.jpg.txt", "b.jpg.xmp"])
def test_sidecars_that_a_shells_star_names_are_passed_over(library: Path, name: str):
    (library / name).write_text(f"{library}/sub/c.jpg\n")
    assert keys(library / name, library / "b.jpg") == [str(library / "b.jpg")]
    (library / "b.jpg").unlink()
    assert keys(library / name) != []


def test_what_is_to_be_ignored_is_no_photograph(library: Path):
    assert keys(library / "notes.txt", library / "b.jpg", ignore={str(library / "notes.txt")}) == [
        str(library / "b.jpg")
    ]


def test_exclude_by_name_and_by_path(library: Path):
    assert keys(library, recursive=True, exclude=["sub", "*.webp"]) == [
        f"{library}/a.PNG",
        f"{library}/b.jpg",
    ]
    assert f"{library}/sub/c.jpg" not in keys(library, recursive=True, exclude=["*/sub/*.jpg"])


def make_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def test_a_shards_photographs_are_read_in_place(tmp_path: Path):
    red, blue = (encode(draw_scene(40 + n, 30), "PNG") for n in (0, 1))
    members = {"000.png": red, "000.txt": b"a caption", "folder/001.png": blue, "._000.png": b"mac"}
    shard = make_shard(tmp_path / "s.tar", members)
    items = list(find_items([str(shard)]))
    assert [item.key for item in items] == [f"{shard}!000.png", f"{shard}!folder/001.png"]
    assert [item.source() for item in items] == [red, blue]
    assert decode_image(items[1].source(), name=items[1].key).width == 41


def test_a_shard_that_is_cut_off_gives_what_it_has(tmp_path: Path):
    shard = make_shard(tmp_path / "s.tar", {"0.jpg": JPEG, "1.jpg": JPEG})
    second = 512 + -(-len(JPEG) // 512) * 512
    shard.write_bytes(shard.read_bytes()[: second + 512 + len(JPEG) // 2])
    *members, end = find_items([str(shard)])
    assert [item.key for item in members] == [f"{shard}!0.jpg", f"{shard}!1.jpg"]
    assert [item.source() == JPEG for item in members] == [True, False]
    assert end.key == str(shard)
    assert "damaged tar shard" in end.problem


@pytest.mark.parametrize(
    ("name", "problem"),
    [("s.tar", "damaged tar shard, or none"), ("s.tar.gz", "compressed"), ("s.tgz", "compressed")],
)
def test_what_is_no_shard_says_so(tmp_path: Path, name: str, problem: str):
    (tmp_path / name).write_bytes(b"no tar" * 300)
    (item,) = find_items([str(tmp_path / name)])
    assert problem in item.problem
    with pytest.raises(ImageError, match=problem):
        item.source()


def test_a_missing_shard_or_list_is_an_item_with_a_problem(tmp_path: Path):
    (shard,) = find_items([str(tmp_path / "none.tar")])
    assert shard.problem == "cannot be read: No such file or directory"
    assert keys(tmp_path / "none.txt") == [str(tmp_path / "none.txt")]


def test_a_member_that_has_gone_cannot_be_read(tmp_path: Path):
    shard = make_shard(tmp_path / "s.tar", {"0.jpg": JPEG})
    (item,) = find_items([str(shard)])
    shard.unlink()
    with pytest.raises(ImageError, match="No such file"):
        item.source()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_item_with_a_problem(library: Path):
    (library / "sub").chmod(0)
    problems = [item for item in find_items([str(library)], recursive=True) if item.problem]
    (library / "sub").chmod(0o700)
    assert problems == [Item(f"{library}/sub", f"{library}/sub", problem="cannot be read: Permission denied")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a file name")
def test_names_that_are_no_utf8_are_sorted_and_opened(tmp_path: Path):
    for name in (b"b.jpg", b"\xff.jpg", b"\xc3\xa4.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(JPEG)
    items = list(find_items([str(tmp_path)]))
    assert [os.path.basename(os.fsencode(item.key)) for item in items] == [
        b"b.jpg",
        b"\xc3\xa4.jpg",
        b"\xff.jpg",
    ]
    assert [decode_image(item.source()).width for item in items] == [96, 96, 96]


def test_items_are_found_as_they_are_taken(library: Path):
    """The first photograph of a library is there before its last folder is read."""
    items = find_items([str(library), str(library / "late")])
    first = next(items)
    (library / "late").mkdir()
    (library / "late" / "l.jpg").write_bytes(JPEG)
    assert first.key == f"{library}/Z.webp"
    assert [item.key for item in items][-1] == f"{library}/late/l.jpg"
