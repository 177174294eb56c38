"""``captioner export``: what a batch wrote, in other forms."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import make_caption
from images import draw_noise

from captioner.batch.reading import RecordFile
from captioner.cli import main


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Three photographs, and a shard with one of them in it."""
    (tmp_path / "library").mkdir()
    for number in range(3):
        draw_noise(60 + number, 50, seed=number).save(tmp_path / "library" / f"{number}.png")
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(tmp_path / "library" / "0.png", "in/0.png")
    return tmp_path / "library"


def record(file: str | Path, text: str = "a dog", **more: Any) -> dict[str, Any]:
    return {**make_caption(text, width=60, height=50).to_dict(), "file": str(file), **more}


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def run(*argv: str | Path) -> int:
    def load(name: str, /, *, device: str, dtype: str) -> Any:
        raise AssertionError("no model is needed")

    return main(["export", *map(str, argv)], load=load)


@pytest.fixture
def finished(library: Path, tmp_path: Path) -> Path:
    """What a batch wrote of them, with one captioned twice, one that failed, and one that has gone."""
    failed = {"file": str(library / "bad.png"), "error": "is damaged", "error_kind": "damaged"}
    return write(
        tmp_path / "o.jsonl",
        record(library / "0.png", "a cat"),
        record(library / "1.png", "perhaps a cow", uncertain=True),
        failed,
        record(library / "gone.png"),
        record(f"{tmp_path}/s.tar!in/0.png", "a cat in a box"),
        record(library / "0.png", "a dog"),
    )


LATEST = ["a dog", "perhaps a cow", None, "a dog", "a cat in a box"]


def test_tables_have_the_latest_record_of_each_photo(finished: Path, tmp_path: Path):
    before = finished.read_bytes()
    for to in ("csv", "excel", "parquet", "jsonl"):
        assert run(finished, "--to", to, "--output", tmp_path / f"t.{to}") == 0
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        assert [row["caption"] or None for row in csv.DictReader(file)] == LATEST
    assert (tmp_path / "t.excel").read_bytes().startswith(b"\xef\xbb\xbf")
    assert pq.read_table(tmp_path / "t.parquet")["caption"].to_pylist() == LATEST
    with RecordFile(finished) as records, RecordFile(tmp_path / "t.jsonl") as again:
        assert list(records) == list(again)
    assert finished.read_bytes() == before


def test_a_gallery_opens_members_of_shards_and_names_what_has_gone(finished: Path, tmp_path: Path):
    assert run(finished, "--to", "html", "-o", tmp_path / "g.html") == 0
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert page.count('<script type="text/html"') == 5
    assert page.count('src="data:image') == 3
    assert "is damaged" in page


def test_sidecars_follow_the_rules_of_a_batch(
    finished: Path, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (library / "0.txt").write_text("mine")
    assert run(finished, "--to", "txt") == 1
    said = capsys.readouterr().err
    for part in (
        "sidecars written: 0",
        "0.txt has a text already; --existing overwrite or append",
        "its caption is uncertain",
        "1 × damaged, such as ",
        "gone.png: is not there any more",
        "nothing can stand beside it in a shard",
    ):
        assert part in said
    assert (library / "0.txt").read_text() == "mine"
    assert run(finished, "--to", "txt", "--existing", "append", "--prefix", "ohwx ") == 1
    assert (library / "0.txt").read_text() == "mine\nohwx a dog\n"
    assert run(finished, "--to", "json", "--sidecar-name", "full") == 1
    assert json.loads((library / "0.png.json").read_text())["caption"] == "a dog"
    assert sorted(path.name for path in library.iterdir() if path.suffix != ".png") == ["0.png.json", "0.txt"]


def test_a_photo_that_has_changed_since_is_named(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status = (library / "0.png").stat()
    photo = {"bytes": status.st_size, "modified": round(status.st_mtime, 3)}
    old = {**photo, "bytes": 1}
    write(tmp_path / "o.jsonl", record(library / "0.png", photo=photo), record(library / "1.png", photo=old))
    assert run(tmp_path / "o.jsonl", "--to", "txt") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "captioner: sidecars written: 2"
    assert len(said) == 2
    assert said[1].startswith(f"captioner: 1 × changed, such as {library}/1.png")


def test_photos_are_found_from_another_folder(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(library)
    photo = {"bytes": 1, "modified": 1.0}
    shard = record("../s.tar!in/0.png", photo={**photo, "folder": f"{tmp_path}/s.tar!in"})
    write(tmp_path / "o.jsonl", record("2.png", photo={**photo, "folder": str(library)}), shard)
    monkeypatch.chdir("/")
    assert run(tmp_path / "o.jsonl", "--to", "html", "-o", tmp_path / "g.html") == 0
    assert (tmp_path / "g.html").read_text(encoding="utf-8").count('src="data:image') == 2
    assert run(tmp_path / "o.jsonl", "--to", "xmp") == 1
    assert "a dog" in (library / "2.xmp").read_text(encoding="utf-8")


def test_what_is_there_stays_unless_it_is_asked_for(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, to in (("t.csv", "csv"), ("g.html", "html")):
        (tmp_path / name).write_text("mine")
        assert run(finished, "--to", to, "-o", tmp_path / name) == 1
        assert "give another name" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
    assert run(finished, "--to", "csv", "-o", tmp_path / "t.csv", "--existing", "overwrite") == 0
    assert run(finished, "--to", "jsonl", "-o", finished, "--existing", "overwrite") == 2
    assert "is the records themselves" in capsys.readouterr().err
    for _ in range(2):  # a gallery of ours is written anew
        assert run(finished, "--to", "html", "-o", tmp_path / "h.html") == 0


def test_a_table_names_the_records_beside_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "o.csv").write_text("file,caption\n")
    assert run(tmp_path / "o.csv", "--to", "jsonl", "-o", tmp_path / "p.jsonl") == 1
    assert "such as captions.csv.jsonl for captions.csv" in capsys.readouterr().err
    os.rename(finished, tmp_path / "o.csv.jsonl")
    assert run(tmp_path / "o.csv", "--to", "jsonl", "-o", tmp_path / "p.jsonl") == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no records"),
        (b'{"file": "a.jpg", "capt', "has no records"),
        (b'{"a": 1}\n', "has no records: give what"),
        (b'{"file": "a.jpg", "caption": "a dog"}\n', "has no records: give what"),
        (gzip.compress(b'{"file": "a.jpg", "error": "x"}\n'), "is compressed: unpack it first"),
        (b"\xff\xd8\xff", "holds no records"),
    ],
)
def test_what_is_no_file_of_records_is_one_sentence(
    content: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "o.jsonl").write_bytes(content)
    assert run(tmp_path / "o.jsonl", "--to", "csv", "-o", tmp_path / "t.csv") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert problem in said[0]
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("to", ["html", "csv", "parquet", "jsonl", "txt"])
def test_lines_that_are_no_records_are_named_and_the_others_exported(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    extra = {"caption": "a cat", "confidence": 0.1, "logprob": -9.0, "rank": 2}
    foreign = [
        {"a": 1},
        {"file": "a.jpg", "caption": "a dog"},
        record("a.jpg", words=["a", "dog"]),
        record("a.jpg", alternatives=5),
        record("a.jpg", alternatives=["a cat"]),
        record("a.jpg", unhedged="a"),
        {"file": "a.jpg", "error": "x", "photo": "y"},
        {"file": "a.jpg", "error": ["x"]},
        {"file": "a.jpg", "error": "x", "error_kind": ["y"]},
    ]
    photo = str(tmp_path / "a.png")
    draw_noise(60, 50).save(photo)
    ours = record(photo, alternatives=[extra], unhedged=extra, another="version's")
    told = [*foreign[:4], ours, {}, *foreign[4:]]
    (tmp_path / "o.jsonl").write_bytes(
        codecs.BOM_UTF8 + b"".join(json.dumps(each).encode() + b"\r\n" for each in told) + b"\r\n"
    )
    output = [] if to == "txt" else ["-o", tmp_path / f"t.{to}"]
    assert run(tmp_path / "o.jsonl", "--to", to, *output) == 1
    said = capsys.readouterr().err.splitlines()
    assert "left out what is no record of a batch, in lines 1-4, 6-11;" in said[0]
    assert said[1] == f"captioner: {'sidecars' if to == 'txt' else 'records'} written: 1"
    assert (tmp_path / ("a.txt" if to == "txt" else f"t.{to}")).stat().st_size


def test_records_that_went_through_a_dataframe(finished: Path, tmp_path: Path):
    parquet, again = tmp_path / "t.parquet", tmp_path / "again.jsonl"
    assert run(finished, "--to", "parquet", "-o", parquet) == 0
    rows = pq.read_table(parquet).to_pylist()
    assert rows[0]["error"] is None
    rows[0] |= {"width": 60.0, "height": 50.0, "calibrated": 0.0}  # as pandas has them beside a null
    write(again, *rows)
    for to in ("csv", "html", "parquet"):
        assert run(again, "--to", to, "-o", tmp_path / f"again.{to}") == 0
    with RecordFile(again) as records:
        assert [each.get("caption") for each in records] == LATEST
        first = next(iter(records))
        assert [first["width"], first["calibrated"]] == [60, False]
        assert [each["file"] for each in records if "error" in each] == [
            str(tmp_path / "library" / "bad.png")
        ]


def test_a_line_that_a_run_has_not_finished_is_left_out(finished: Path):
    with open(finished, "a", encoding="utf-8") as file:
        file.write('{"file": "a.jpg", "caption": "a d')
    with RecordFile(finished) as records:
        assert len(records) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        ["--to", "csv"],
        ["--to", "txt", "-o", "o.txt"],
        ["--to", "docx"],
        ["--to", "xmp", "--prefix", "x"],
        ["--to", "csv", "-o", "t.csv", "--existing", "append"],
        ["--to", "csv", "-o", "t.csv", "--sidecar-name", "full"],
        ["--to", "csv", "-o", "none/t.csv"],
        ["--to", "html", "-o", "t.pdf"],
        [],
    ],
)
def test_wrong_usage(finished: Path, tmp_path: Path, wrong: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(finished, *wrong) == 2
    assert sorted(tmp_path.iterdir()) == before
