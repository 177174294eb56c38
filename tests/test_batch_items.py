"""Which photographs a batch has: every kind of input, in a stable order, each once."""

from __future__ import annotations

import io
import os
import random
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from images import draw_scene, encode

from captioner import ImageError
from captioner.batch.finding import find_items, read_list
from captioner.batch.items import Item, identity
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


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_as_powershell_writes_it(encoding: str):
    text = "\ufeffC:\\ä.jpg\r\n\r\n日本.jpg\r\n"
    assert read_list(text.encode(encoding)) == ["C:\\ä.jpg", "日本.jpg"]


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
    assert f"{library}/sub/c.jpg" not in keys(library, recursive=True, exclude=["sub/"])


NAS = ["up.JPG", "@eaDir/up.JPG/SYNOPHOTO_THUMB_XL.jpg", "#recycle/old.jpg", "a/$Recycle.Bin/b.jpg"]
NAS += [".thumbnails/c.jpg", ".Trash-1000/files/d.jpg", ".git/e.jpg", "a/._up.jpg", "a/@Recycle.jpg"]
NAS += ["appdata_oc1a2b/preview/1/256-256.jpg", "~snapshot/daily/up.JPG"]


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    """Two photographs among the thumbnails and bins of several programs."""
    for name in NAS:
        (tmp_path / "nas" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nas" / name).write_bytes(JPEG)
    return tmp_path / "nas"


def test_thumbnails_and_bins_are_left_out_and_counted(nas: Path):
    left_out: Counter[str] = Counter()
    found = keys(nas, recursive=True, left_out=left_out)
    assert found == [f"{nas}/a/@Recycle.jpg", f"{nas}/up.JPG"]
    kinds = ["@eaDir", "#recycle", "$RECYCLE.BIN", ".thumbnails", ".Trash*", "appdata_oc*", "~snapshot"]
    assert left_out == {**dict.fromkeys(kinds, 1), "hidden": 2}
    everything = keys(nas, recursive=True, all_files=True, left_out=left_out)
    assert sorted(everything) == sorted(f"{nas}/{name}" for name in NAS)


def test_a_glob_in_a_folder_whose_name_has_brackets(tmp_path: Path):
    for name in ("Trip [2019]/a.jpg", "Trip [2019]/more [1]/b.jpg", "Trip 2/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JPEG)
    assert keys(f"{tmp_path}/Trip [2019]/*.jpg") == [f"{tmp_path}/Trip [2019]/a.jpg"]
    assert keys(f"{tmp_path}/Trip [2019]/*/b.jpg") == [f"{tmp_path}/Trip [2019]/more [1]/b.jpg"]
    assert keys(f"{tmp_path}/Trip [[]2019]/more*/*") == [f"{tmp_path}/Trip [2019]/more [1]/b.jpg"]
    assert keys(f"{tmp_path}/Trip [12]/*") == [f"{tmp_path}/Trip 2/c.jpg"]


def test_a_glob_leaves_out_what_it_does_not_name(nas: Path):
    assert keys(f"{nas}/**/*.jpg") == [f"{nas}/a/@Recycle.jpg"]
    assert keys(f"{nas}/**/#recycle/*.jpg") == [f"{nas}/#recycle/old.jpg"]
    assert f"{nas}/.git/e.jpg" in keys(f"{nas}/**/*.jpg", all_files=True)


def test_a_bin_that_the_shells_star_names_is_left_out_and_what_is_in_it_can_be_named(nas: Path):
    assert keys(*sorted(nas.glob("*")), recursive=True) == [
        f"{nas}/.Trash-1000/files/d.jpg",
        f"{nas}/.git/e.jpg",
        f"{nas}/.thumbnails/c.jpg",
        f"{nas}/a/@Recycle.jpg",
        f"{nas}/up.JPG",
    ]
    assert keys(nas / "#recycle" / "old.jpg", nas / "@eaDir" / "up.JPG") == [
        f"{nas}/#recycle/old.jpg",
        f"{nas}/@eaDir/up.JPG/SYNOPHOTO_THUMB_XL.jpg",
    ]


def test_a_shards_bins_are_left_out(nas: Path, tmp_path: Path):
    shard = make_shard(tmp_path / "nas.tar", {f"./{name}": JPEG for name in NAS})
    assert keys(shard) == [f"{shard}!./up.JPG", f"{shard}!./a/@Recycle.jpg"]
    assert len(keys(shard, all_files=True)) == len(NAS)


def test_a_photograph_comes_once_however_it_is_spelled(library: Path, monkeypatch: pytest.MonkeyPatch):
    (library.parent / "link").symlink_to(library)
    monkeypatch.chdir(library.parent)
    assert keys("library/b.jpg", "./library", library, "library/sub/../b.jpg", "link/b.jpg") == [
        "library/b.jpg",
        "./library/Z.webp",
        "./library/a.PNG",
    ]


def test_an_identity_is_a_path_without_links_to_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").symlink_to("b.jpg")  # a photograph of its own, as before
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    names = ["photos/a.jpg", "./photos/a.jpg", "link/a.jpg", "photos//a.jpg", f"{tmp_path}/photos/a.jpg"]
    assert {identity(name) for name in names} == {f"{tmp_path}/photos/a.jpg"}
    assert identity("photos/b\n") == f"{tmp_path}/photos/b\n"
    assert identity("link/S.TAR!../a.jpg") == f"{tmp_path}/photos/S.TAR!../a.jpg"
    assert identity("s3://bucket//a.jpg") == "s3://bucket//a.jpg"
    monkeypatch.chdir("photos")
    assert identity("a.jpg") == f"{tmp_path}/photos/a.jpg"


def test_a_line_of_a_list_that_cannot_be_read_is_an_item_with_a_problem(library: Path, tmp_path: Path):
    text = f"{library}/b.jpg\nhttps://example.org/b\n{library}/b.xmp\n{library}/sub\n".encode()
    (tmp_path / "list.txt").write_bytes(text)
    for items in (find_items([str(tmp_path / "list.txt")]), find_items(["-"], stdin=text)):
        good, bad, other = items
        assert [good.key, other.key] == [f"{library}/b.jpg", f"{library}/sub/c.jpg"]
        assert bad.key == "https://example.org/b"
        assert "https://example.org cannot be read: s3, gs" in bad.problem
        assert "download it first" in bad.problem
    with pytest.raises(ImageError, match=r"https://example\.org cannot be read: s3, gs"):
        Item("https://example.org/b.jpg", "https://example.org/b.jpg").source()


def test_a_version_tells_that_a_file_has_changed(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    item = Item("a.jpg", str(tmp_path / "a.jpg"))
    before = item.version()
    os.utime(item.path, (1, 1.5))
    assert before != item.version() == (len(JPEG), 1.5)
    (tmp_path / "a.jpg").unlink()
    assert item.version() is None
    shard = make_shard(tmp_path / "s.tar", {"0.jpg": JPEG})
    (member,) = find_items([str(shard)])
    assert member.version() == (len(JPEG), 0.0)
    assert Item("s3://b/a.jpg", "s3://b/a.jpg").version() is None


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
