"""The records on disk: whole lines, each photograph once, whatever was cut off, full, or run twice."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from full_disk import largest_file
from hypothesis import given, settings
from hypothesis import strategies as st

from captioner import DataError
from captioner.batch.log import RecordLog
from captioner.batch.records import encode_record
from captioner.batch.replacing import replacing

CAPTIONED = {
    "model": "m",
    "width": 4,
    "height": 3,
    "caption": "ein Hund läuft",
    "confidence": 0.5,
    "logprob": -1.5,
}


def good(file: str, **more: Any) -> dict[str, Any]:
    return {"file": file, **CAPTIONED, **more}


def bad(file: str) -> dict[str, Any]:
    return {"file": file, "error": "is empty", "error_kind": "damaged"}


def write(path: Path, *records: dict[str, Any], **settings: Any) -> None:
    with RecordLog(path, **settings) as log:
        for record in records:
            log.append(record)
        log.finish()


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def test_a_record_is_in_the_file_when_append_returns(path: Path):
    with RecordLog(path) as log:
        for number in range(3):
            log.append(good(f"{number}.jpg"))
            assert lines(path)[number:] == [good(f"{number}.jpg")]


def test_records_are_found_again_by_the_next_run(path: Path):
    write(path, good("a.jpg"), bad("b.jpg"), good("c\n.jpg"))
    with RecordLog(path) as log:
        assert ["a.jpg" in log, "b.jpg" in log, "c\n.jpg" in log, "d.jpg" in log] == [True, True, True, False]
        entries = [log.entry(name) for name in ("a.jpg", "b.jpg", "d.jpg")]
        assert [entry and entry.failed for entry in entries] == [False, True, None]
        assert log["c\n.jpg"] == good("c\n.jpg")
        assert [record["file"] for record in log] == ["a.jpg", "b.jpg", "c\n.jpg"]
        log.append(good("d.jpg"))
        assert log["d.jpg"] == good("d.jpg")
        assert log["a.jpg"] == good("a.jpg")
    assert [record["file"] for record in lines(path)] == ["a.jpg", "b.jpg", "c\n.jpg", "d.jpg"]


def test_text_is_readable_and_any_file_name_survives(path: Path):
    name = os.fsdecode(b"\xff.jpg")
    write(path, good("ä.jpg"), good(name))
    assert "ein Hund läuft" in path.read_text(encoding="utf-8")
    with RecordLog(path) as log:
        assert name in log
        assert log[name] == good(name)


@settings(deadline=None)
@given(cut=st.integers(min_value=0, max_value=10_000))
def test_a_file_cut_off_anywhere_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int
):
    records = [good("ä.jpg"), bad("b.jpg"), good("c.jpg", warning="ü" * 70), good("d.jpg")]
    whole = b"".join(map(encode_record, records))
    path = tmp_path_factory.mktemp("cut") / "captions.jsonl"
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    with RecordLog(path) as log:
        assert len(log) == kept
        assert path.read_bytes() == b"".join(map(encode_record, records[:kept]))
        for record in records:
            if record["file"] not in log:
                log.append(record)
        log.finish()
    assert path.read_bytes() == whole


def test_a_long_line_that_was_cut_off_is_found(path: Path):
    path.write_bytes(encode_record(good("a.jpg")) + encode_record(good("b.jpg", warning="w" * 300_000))[:-9])
    with RecordLog(path) as log:
        assert len(log) == 1
    assert lines(path) == [good("a.jpg")]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff\xe0 a photograph",
        b"file,caption\n",
        b'{"no": "file"}\n',
        b'{"file": "a.jpg", "text": "theirs"}\n',
        b'{"file": "a.jpg", "caption": "theirs"}\n',
        b"{\n}\n",
        b"[1]\n",
        b"\n\xff",
    ],
)
@pytest.mark.parametrize("existing", ["skip", "append"])
def test_a_file_of_something_else_is_refused_and_not_touched(path: Path, content: bytes, existing: Any):
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match="is not a record of a batch"),
        RecordLog(path, existing=existing) as log,
    ):
        log.finish()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "part",
    [
        {"file": ""},
        {"made_with": "x"},
        {"photo": {"folder": 3}},
        {"photo": {"bytes": "x", "modified": 1.5}},
        {"sha256": ["x"]},
        {"error": 5},
        {"warning": 3},
        {"width": -1},
        {"width": True},
        {"height": 10**12},
        {"confidence": "0.5"},
        {"uncertain": "no"},
        {"alternatives": [{"caption": "x"}]},
        {"words": [{"text": "x", "confidence": 0.5, "logprob": -1, "box": [1]}]},
        {"words": [{"text": "x", "confidence": 0.5, "logprob": -1, "attention": "x"}]},
    ],
)
def test_a_record_whose_parts_are_of_other_types_is_named_by_its_line(path: Path, part: dict[str, Any]):
    content = b"\n" + encode_record(good("a.jpg")) + encode_record(good("b.jpg") | part)
    path.write_bytes(content)
    with pytest.raises(DataError, match="line 3, is not a record of a batch"):
        RecordLog(path)
    assert path.read_bytes() == content


def test_what_editors_add_is_no_obstacle(path: Path):
    path.write_bytes(
        codecs.BOM_UTF8
        + b"".join(encode_record(good(f"{name}.jpg")) for name in "ab").replace(b"\n", b"\r\n\r\n")
    )
    with RecordLog(path) as log:
        assert [record["file"] for record in log] == ["a.jpg", "b.jpg"]
        log.append(good("a.jpg", caption="new"))
        log.finish()
        assert [log[f"{name}.jpg"]["caption"] for name in "ab"] == ["new", "ein Hund läuft"]
    assert [record["file"] for record in lines(path)] == ["a.jpg", "b.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file")
@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_is_removed_or_replaced_meanwhile_ends_the_run(path: Path, replaced: bool):
    with RecordLog(path) as log:
        log.append(good("a.jpg"))
        path.rename(path.with_name("moved"))
        if replaced:
            path.write_bytes(b"theirs")
        for write in (lambda: log.append(good("b.jpg")), log.finish):
            with pytest.raises(DataError, match="was removed or replaced"):
                write()
    assert lines(path.with_name("moved")) == [good("a.jpg")]
    assert not replaced or path.read_bytes() == b"theirs"


def test_overwriting_a_photograph_is_refused(path: Path):
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="is not a record"):
        RecordLog(path, existing="overwrite")
    assert path.read_bytes() == b"\xff\xd8\xff\xe0"


def test_a_second_run_on_one_file_is_refused_until_the_first_has_ended(path: Path):
    script = (
        "import sys; from captioner.batch.log import RecordLog\n"
        f"log = RecordLog({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        for existing in ("skip", "overwrite", "append"):
            with pytest.raises(DataError, match="another run"):
                RecordLog(path, existing=existing)  # type: ignore[arg-type]
        other.kill()
        other.wait()
        write(path, good("a.jpg"))
    assert lines(path) == [good("a.jpg")]


def test_retried_errors_are_replaced_in_their_place(path: Path):
    write(path, good("a.jpg"), bad("b.jpg"), bad("c.jpg"), good("d.jpg"))
    with RecordLog(path, retry_errors=True) as log:
        assert [name in log for name in ("a.jpg", "b.jpg", "c.jpg")] == [True, False, False]
        log.append(good("c.jpg"))
        log.append(bad("b.jpg"))
        assert "b.jpg" in log
        log.append(good("e.jpg"))
        log.finish()
        assert log["c.jpg"] == good("c.jpg")
        log.append(good("f.jpg"))
        assert log["f.jpg"] == good("f.jpg")
    expected = [good("a.jpg"), bad("b.jpg"), good("c.jpg"), good("d.jpg"), good("e.jpg"), good("f.jpg")]
    assert lines(path) == expected


def test_errors_that_a_killed_retry_did_not_reach_are_still_there(path: Path):
    write(path, bad("a.jpg"), bad("b.jpg"))
    with RecordLog(path, retry_errors=True) as log:
        log.append(good("a.jpg"))  # and no finish
    write(path)
    assert lines(path) == [good("a.jpg"), bad("b.jpg")]


@pytest.mark.parametrize(
    ("existing", "before"), [("overwrite", []), ("append", [good("a.jpg"), bad("b.jpg")])]
)
def test_what_is_to_replace_records_does_so_in_one_step_and_goes_on_after_a_kill(
    path: Path, existing: Any, before: list[dict[str, Any]]
):
    write(path, good("a.jpg"), bad("b.jpg"))
    with RecordLog(path, existing=existing) as log:
        assert "a.jpg" not in log
        log.append(good("a.jpg", caption="new"))
        assert not log.in_place
    assert lines(path) == [good("a.jpg"), bad("b.jpg")]
    with pytest.raises(DataError, match=f"--existing {existing} did not finish"):
        RecordLog(path)
    with RecordLog(path, existing=existing) as log:
        assert "a.jpg" in log
        log.append(good("b.jpg"))
        log.finish()
        assert log.in_place
        assert [record["file"] for record in log][-2:] == ["a.jpg", "b.jpg"]
    assert lines(path) == [*before, good("a.jpg", caption="new"), good("b.jpg")]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_digests_of_records_that_stand(path: Path):
    write(path, good("a.jpg", sha256="1"), bad("b.jpg") | {"sha256": "2"}, good("c.jpg", sha256="1"))
    with RecordLog(path) as log:
        assert log.digests == {"1": "a.jpg", "2": "b.jpg"}
    with RecordLog(path, retry_errors=True) as log:
        assert log.digests == {"1": "a.jpg"}


def test_a_full_disk_leaves_whole_records_and_says_what_to_do(path: Path):
    line = len(encode_record(good("0.jpg")))
    with largest_file(3 * line + line // 2), RecordLog(path) as log:
        for number in range(3):
            log.append(good(f"{number}.jpg"))
        with pytest.raises(DataError, match=r"too large\. The 3 records in it are safe: make room"):
            log.append(good("3.jpg"))
    assert [record["file"] for record in lines(path)] == ["0.jpg", "1.jpg", "2.jpg"]
    write(path, good("3.jpg"))
    assert len(lines(path)) == 4


def test_a_full_disk_while_finishing_leaves_what_there_was(path: Path):
    records = [bad(f"{number}.jpg") for number in range(9)]
    write(path, *records)
    with RecordLog(path, retry_errors=True) as log:
        log.append(good("0.jpg"))
        with largest_file(300), pytest.raises(DataError, match="cannot be finished"):
            log.finish()
    write(path)
    assert lines(path) == [good("0.jpg"), *records[1:]]


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_run_that_writes_nothing_leaves_nothing(path: Path, existing: Any):
    RecordLog(path, existing=existing).close()
    assert list(path.parent.iterdir()) == []
    path.touch()
    RecordLog(path).close()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "it was there before"


def test_the_lock_of_a_killed_run_is_no_obstacle_and_a_refused_run_does_not_take_it_away(path: Path):
    lock = path.with_name(f".{path.name}.lock")
    lock.touch()
    with RecordLog(path) as log:
        with pytest.raises(DataError, match="another run"):
            RecordLog(path)
        assert lock.exists()
        log.append(good("a.jpg"))
    assert not lock.exists()


def test_a_photograph_is_the_same_however_it_is_spelled(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(path.parent)
    write(path, good("photos/a.jpg"), good("./photos/a.jpg", caption="new"), good("photos/b.jpg"))
    with RecordLog(path) as log:
        assert len(log) == 2
        for name in ("photos/a.jpg", "./photos/a.jpg", f"{path.parent}/photos/a.jpg"):
            assert log[name]["caption"] == "new"
        log.outdate("./photos/a.jpg")
        assert "photos/a.jpg" not in log
    assert [record["file"] for record in lines(path)] == ["./photos/a.jpg", "photos/b.jpg"]


def test_a_record_tells_which_folder_its_path_was_relative_to(path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("x", "y"):
        (path.parent / name).mkdir()
        (path.parent / name / "a.jpg").touch()
    photo = {"bytes": 0, "modified": 1.0, "folder": str(path.parent / "x")}
    write(path, good("a.jpg", photo=photo))
    for folder, there in (("x", "a.jpg"), ("y", "../x/a.jpg"), (".", "x/a.jpg")):
        monkeypatch.chdir(path.parent / folder)
        with RecordLog(path) as log:
            assert there in log
            entry = log.entry(there)
            assert entry is not None
            assert entry.version == (0, 1.0)
    monkeypatch.chdir(path.parent / "y")
    with RecordLog(path) as log:
        assert "a.jpg" not in log
    (path.parent / "x" / "a.jpg").unlink()  # the library has moved from x to y
    with RecordLog(path) as log:
        assert "a.jpg" in log


def test_a_caption_whose_sidecar_failed_is_not_made_again(path: Path):
    sidecar = {"error": "its sidecar cannot be written", "error_kind": "sidecar"}
    write(path, good("a.jpg") | sidecar, bad("b.jpg"))
    with RecordLog(path, retry_errors=True) as log:
        assert ["a.jpg" in log, "b.jpg" in log] == [True, False]


def test_where_nothing_can_be_written_is_said(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        RecordLog(tmp_path / "folder")
    with pytest.raises(DataError, match="folder does not exist"):
        RecordLog(tmp_path / "none" / "captions.jsonl")
    assert not (tmp_path / "none").exists()


def test_replacing_needs_no_longer_a_name_than_fits(tmp_path: Path):
    target = tmp_path / ("n" * 255)
    with replacing(target) as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_replacing_keeps_attributes_but_not_the_time(tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("old")
    try:
        os.setxattr(target, "user.tag", b"red")
    except (AttributeError, OSError):
        pytest.skip("no attributes on this machine's disk")
    os.utime(target, (1, 1))
    with replacing(target) as file:
        file.write(b"new")
    assert [os.getxattr(target, "user.tag"), target.stat().st_mtime > 1] == [b"red", True]


def test_replacing_is_all_or_nothing_and_keeps_mode_and_link(tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "link") as file:
        file.write(bytes([1 // 0]))
    assert target.read_text() == "old"
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]
