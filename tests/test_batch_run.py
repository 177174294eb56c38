"""A run: what is left to do, duplicates, sidecars that cannot be written, stops, and tables of records."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import FakeCaptioner
from full_disk import largest_file
from images import draw_noise, encode

from captioner import DataError, GenerationOptions
from captioner.batch.counts import Counts
from captioner.batch.engine import BatchCaptioner
from captioner.batch.export import write_table
from captioner.batch.finding import find_items
from captioner.batch.items import Dedupe, Item
from captioner.batch.local import LocalEngine
from captioner.batch.log import RecordLog
from captioner.batch.records import Record
from captioner.batch.run import run_batch
from captioner.batch.sidecars import Left, Sidecars


class Backwards:
    """An engine that gives its records in the opposite order, one by one, as a cluster may."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine

    def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
        records = [record for batch in self.engine.run(items) for record in batch]
        yield from ([record] for record in reversed(records))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Ten photographs in two folders, of which 3 and 8 are none; 2 and 9 are copies of 0, 7 is one of 3."""
    for number in range(10):
        path = tmp_path / "library" / ("a" if number < 5 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_noise(60 + number, 50, seed=number).save(path)
    for number in (3, 8):
        next((tmp_path / "library").glob(f"*/{number}.png")).write_bytes(b"bad" * number)
    for source, target in ((0, 2), (0, 9), (3, 7)):
        names = [next((tmp_path / "library").glob(f"*/{number}.png")) for number in (source, target)]
        shutil.copy(*names)
    return tmp_path / "library"


def engine(fake: FakeCaptioner | None = None, batch_size: int = 3) -> LocalEngine:
    return LocalEngine(BatchCaptioner(fake or FakeCaptioner()), batch_size=batch_size)  # type: ignore[arg-type]


def run(
    library: Path, path: Path, captions: Any = None, log: dict[str, Any] | None = None, **more: Any
) -> Counts:
    items = find_items([str(library)], recursive=True)
    with RecordLog(path, **(log or {})) as records:
        return run_batch(items, captions or engine(), records, **more)


def records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(path: Path) -> list[int]:
    return [int(Path(record["file"]).stem) for record in records(path)]


def test_counts(library: Path, tmp_path: Path):
    counts = run(library, tmp_path / "o.jsonl")
    assert numbers(tmp_path / "o.jsonl") == list(range(10))
    assert [counts.captioned, counts.failed, counts.already, counts.done] == [7, 3, 0, 10]
    assert counts.errors == {"type": 3}
    assert counts.examples["type"][0].endswith("/3.png")
    again = run(library, tmp_path / "o.jsonl")
    assert [again.captioned, again.failed, again.already, again.errors["type"]] == [0, 0, 10, 3]


def test_only_what_is_missing_is_captioned(library: Path, tmp_path: Path):
    run(library / "b", tmp_path / "o.jsonl")
    fake = FakeCaptioner()
    counts = run(library, tmp_path / "o.jsonl", engine(fake))
    assert numbers(tmp_path / "o.jsonl") == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert [counts.captioned, counts.already, sum(fake.batches)] == [4, 5, 4]


def test_a_stop_leaves_what_the_next_run_goes_on_with(library: Path, tmp_path: Path):
    told: list[int] = []

    def progress(counts: Counts) -> None:
        told.append(counts.done)

    counts = run(library, tmp_path / "o.jsonl", stop=lambda: len(told) == 2, progress=progress)
    assert counts.stopped
    assert numbers(tmp_path / "o.jsonl") == [0, 1, 2, 3, 4, 5]
    counts = run(library, tmp_path / "o.jsonl")
    assert not counts.stopped
    assert numbers(tmp_path / "o.jsonl") == list(range(10))


def test_an_error_that_is_retried_takes_the_place_of_the_old_one(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl")
    draw_noise(63, 50).save(library / "a" / "3.png")
    counts = run(library, tmp_path / "o.jsonl", log={"retry_errors": True})
    assert [counts.captioned, counts.failed, counts.already] == [1, 2, 7]
    assert numbers(tmp_path / "o.jsonl") == list(range(10))
    assert [index for index, record in enumerate(records(tmp_path / "o.jsonl")) if "error" in record] == [
        7,
        8,
    ]


@pytest.mark.parametrize("wrap", [lambda engine: engine, Backwards])
def test_equal_bytes_are_captioned_once(library: Path, tmp_path: Path, wrap: Any):
    fake = FakeCaptioner()
    counts = run(library, tmp_path / "o.jsonl", wrap(engine(fake)), dedupe="bytes")
    assert sum(fake.batches) == 5
    assert [counts.captioned, counts.failed] == [7, 3]
    found = {int(Path(record["file"]).stem): record for record in records(tmp_path / "o.jsonl")}
    assert sorted(found) == list(range(10))
    copies = {number: record["duplicate_of"] for number, record in found.items() if "duplicate_of" in record}
    first, third = str(library / "a" / "0.png"), str(library / "a" / "3.png")
    assert copies == {2: first, 9: first, 7: third}
    assert found[9]["caption"] == found[0]["caption"]
    assert found[7]["error"] == found[3]["error"]
    assert found[9]["sha256"] == found[2]["sha256"] == found[0]["sha256"] != found[1]["sha256"]


@pytest.mark.parametrize("wrap", [lambda engine: engine, Backwards])
def test_one_shot_in_several_files_is_captioned_once(tmp_path: Path, wrap: Any):
    photos = tmp_path / "photos"
    for name in ("1.cr2.png", "a/IMG_2.PNG", "a/img_2.webp", "a/3.png", "b/IMG_2.png", "b/4.gif"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        draw_noise(70, 50).save(photos / name)
    (photos / "a" / "3.DNG").write_bytes(b"II*\0 no photograph")
    fake, output = FakeCaptioner(), tmp_path / "o.jsonl"
    counts = run(photos, output, wrap(engine(fake)), dedupe="stem")
    assert (counts.captioned, counts.failed, sum(fake.batches)) == (7, 0, 5)
    names = {record["file"].removeprefix(f"{photos}/"): record for record in records(output)}
    first = {name: record["duplicate_of"] for name, record in names.items() if "duplicate_of" in record}
    assert first == {"a/3.DNG": f"{photos}/a/3.png", "a/img_2.webp": f"{photos}/a/IMG_2.PNG"}
    assert not any("sha256" in record for record in names.values())
    draw_noise(70, 50).save(photos / "b" / "4.png")
    assert run(photos, output, dedupe="stem").captioned == 1
    assert records(output)[-1]["duplicate_of"] == f"{photos}/b/4.gif"


@pytest.mark.parametrize("wrap", [lambda engine: engine, Backwards])
def test_a_damaged_file_of_a_shot_does_not_stand_for_the_others(tmp_path: Path, wrap: Any):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("1.bmp", "1.gif", "2.jpeg", "2.png"):
        (photos / name).write_bytes(b"damaged")
    for name in ("0.png", "1.png", "1.webp"):
        draw_noise(70, 50).save(photos / name)
    fake, output = FakeCaptioner(), tmp_path / "o.jsonl"
    counts = run(photos, output, wrap(engine(fake)), dedupe="stem")
    assert (counts.captioned, counts.failed, sum(fake.batches)) == (3, 4, 2)
    found = {Path(record["file"]).name: record for record in records(output)}
    assert len(records(output)) == len(found) == 7
    assert {name for name, record in found.items() if "caption" in record} == {"0.png", "1.png", "1.webp"}
    first = {name: record["duplicate_of"] for name, record in found.items() if "duplicate_of" in record}
    assert first == {"1.webp": f"{photos}/1.png"}
    assert run(photos, output, dedupe="stem").already == 7


def test_a_cut_file_of_a_shot_does_not_stand_for_the_others(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(encode(draw_noise(70, 50), "JPEG")[:-500])
    draw_noise(70, 50).save(tmp_path / "1.png")
    output = tmp_path / "o" / "o.jsonl"
    output.parent.mkdir()
    fake = FakeCaptioner()
    assert run(tmp_path, output, engine(fake), dedupe="stem").captioned == sum(fake.batches) == 2
    cut, whole = records(output)
    assert "warning" in cut
    assert not whole.keys() & {"warning", "duplicate_of"}


@pytest.mark.parametrize("cut", range(11))
def test_duplicates_after_a_kill_are_those_of_one_undisturbed_run(library: Path, tmp_path: Path, cut: int):
    run(library, tmp_path / "whole.jsonl", dedupe="bytes")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "o.jsonl").write_bytes(b"".join(lines[:cut]))
    fake = FakeCaptioner()
    run(library, tmp_path / "o.jsonl", engine(fake), dedupe="bytes")
    assert (tmp_path / "o.jsonl").read_bytes() == b"".join(lines)
    assert sum(fake.batches) == sum(
        "caption" in r and "duplicate_of" not in r for r in map(json.loads, lines[cut:])
    )


def test_duplicates_of_a_retried_error_get_its_caption(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl", dedupe="bytes")
    for name in ("a/3.png", "b/7.png"):
        draw_noise(63, 50).save(library / name)
    run(library, tmp_path / "o.jsonl", dedupe="bytes", log={"retry_errors": True})
    found = records(tmp_path / "o.jsonl")
    assert numbers(tmp_path / "o.jsonl") == list(range(10))
    assert [found[7]["caption"], found[7]["duplicate_of"]] == [found[3]["caption"], found[3]["file"]]


def test_a_missing_file_is_no_duplicate_of_another(tmp_path: Path):
    items = [Item(name, name) for name in ("/none/a.jpg", "/none/b.jpg", str(tmp_path))]
    with RecordLog(tmp_path / "o.jsonl") as log:
        counts = run_batch(items, engine(), log, dedupe="bytes")
    assert counts.errors == {"unreadable": 3}
    assert not any("duplicate_of" in record for record in records(tmp_path / "o.jsonl"))


def test_each_captioned_photograph_has_its_sidecar(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl", sidecars=Sidecars("txt"), dedupe="bytes")
    texts = {int(path.stem): path.read_text() for path in library.rglob("*.txt")}
    captions = {
        number: record["caption"]
        for number, record in enumerate(records(tmp_path / "o.jsonl"))
        if "caption" in record
    }
    assert texts == {number: f"{caption}\n" for number, caption in captions.items()}


def test_a_sidecar_that_cannot_be_written_is_an_error_and_the_caption_stays(library: Path, tmp_path: Path):
    (library / "a" / "1.xmp").write_bytes(b"<damaged")
    (library / "a" / "2.xmp").mkdir()
    counts = run(library, tmp_path / "o.jsonl", sidecars=Sidecars("xmp"))
    assert counts.errors == {"type": 3, "sidecar": 2}
    damaged, folder = records(tmp_path / "o.jsonl")[1:3]
    assert damaged["caption"] == "a photo 61 wide and 50 high"
    assert damaged["error"].startswith("its sidecar 1.xmp is no XMP")
    assert folder["error"] == "its sidecar cannot be written: Is a directory"
    (library / "a" / "1.xmp").unlink()
    (library / "a" / "2.xmp").rmdir()
    counts = run(library, tmp_path / "o.jsonl", sidecars=Sidecars("xmp"), log={"retry_errors": True})
    assert counts.errors == {"type": 3}
    assert (library / "a" / "1.xmp").is_file()


def test_no_room_for_a_sidecar_ends_the_run(library: Path, tmp_path: Path):
    class Full(Sidecars):
        def write(self, photo: str, record: Record, *, previous: Record | None = None) -> Left | None:
            if photo.endswith("4.png"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(photo, record, previous=previous)

    with pytest.raises(DataError, match=r"No space left on device\. The records so far are safe"):
        run(library, tmp_path / "o.jsonl", sidecars=Full("txt"))
    assert numbers(tmp_path / "o.jsonl") == [0, 1, 2, 3]


def test_what_the_engine_gave_before_it_failed_is_kept(library: Path, tmp_path: Path):
    class Dying(LocalEngine):
        def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
            yield next(super().run(items))
            raise DataError("the cluster is gone")

    with pytest.raises(DataError, match="is gone"):
        run(library, tmp_path / "o.jsonl", Dying(engine().captioner, batch_size=3))
    assert numbers(tmp_path / "o.jsonl") == [0, 1, 2]


def test_a_photograph_has_one_record_however_it_is_spelled(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    folders = ["library", "./library", str(library), "library/../library/"]
    counts = [run(Path(folder), tmp_path / "o.jsonl") for folder in folders]
    assert [count.already for count in counts] == [0, 10, 10, 10]
    monkeypatch.chdir(library)
    assert run(Path("."), tmp_path / "o.jsonl").already == 10
    assert numbers(tmp_path / "o.jsonl") == list(range(10))
    assert records(tmp_path / "o.jsonl")[0]["file"] == "library/a/0.png"


@pytest.mark.parametrize("dedupe", [None, "bytes"])
def test_a_photograph_that_has_changed_is_captioned_anew(
    library: Path, tmp_path: Path, dedupe: Dedupe | None
):
    run(library, tmp_path / "o.jsonl", dedupe=dedupe)
    draw_noise(99, 50).save(library / "a" / "0.png")  # of which 2 and 9 are copies
    draw_noise(98, 50).save(library / "a" / "3.png")  # which was none, and neither is 7
    fake = FakeCaptioner()
    counts = run(library, tmp_path / "o.jsonl", engine(fake), dedupe=dedupe)
    assert [counts.changed, counts.captioned, counts.already, sum(fake.batches)] == [2, 2, 8, 2]
    found = {int(Path(record["file"]).stem): record for record in records(tmp_path / "o.jsonl")}
    assert list(found) == list(range(10))
    assert [found[0]["caption"], found[3]["caption"]] == [f"a photo {n} wide and 50 high" for n in (99, 98)]
    assert found[2]["caption"] == found[9]["caption"] == "a photo 60 wide and 50 high"
    assert run(library, tmp_path / "o.jsonl", dedupe=dedupe).already == 10


def test_a_copy_of_what_a_changed_photograph_was_gets_no_caption_of_what_it_is(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl", dedupe="bytes")
    for name in ("a/00.png", "b/99.png"):  # before and after it
        shutil.copy(library / "a" / "1.png", library / name)
    draw_noise(99, 50).save(library / "a" / "1.png")
    run(library, tmp_path / "o.jsonl", dedupe="bytes")
    found = {Path(record["file"]).name: record["caption"] for record in records(tmp_path / "o.jsonl")[-3:]}
    found |= {Path(r["file"]).name: r["caption"] for r in records(tmp_path / "o.jsonl") if "caption" in r}
    assert found["1.png"] == "a photo 99 wide and 50 high"
    assert found["00.png"] == found["99.png"] == "a photo 61 wide and 50 high"


def test_a_copy_of_what_a_changed_member_of_a_shard_was(library: Path, tmp_path: Path):
    def pack(*names: str) -> None:
        with tarfile.open(tmp_path / "s.tar", "w") as shard:
            for name in names:
                shard.add(library / name, "member.png")

    pack("a/1.png")
    run(tmp_path / "s.tar", tmp_path / "o.jsonl", dedupe=True)
    pack("a/4.png")
    run(tmp_path / "s.tar", tmp_path / "o.jsonl", dedupe=True)
    found = records(tmp_path / "o.jsonl")
    assert [record["caption"] for record in found] == ["a photo 64 wide and 50 high"]
    pack("b/5.png")
    items = [*find_items([str(tmp_path / "s.tar")]), *find_items([str(library / "a" / "4.png")])]
    with RecordLog(tmp_path / "o.jsonl") as log:
        run_batch(items, engine(), log, dedupe=True)
    assert [record["caption"] for record in records(tmp_path / "o.jsonl")] == [
        "a photo 65 wide and 50 high",
        "a photo 64 wide and 50 high",
    ]


ORIGIN = {"model": "fake", "weights": "1", "num_beams": 5}


@pytest.mark.parametrize(
    ("origin", "change"),
    [
        (ORIGIN, ""),
        ({**ORIGIN, "num_beams": 3}, "num_beams 5, now 3"),
        ({"model": "fake", "weights": "1"}, "num_beams 5, now 3"),  # the usual number
        ({**ORIGIN, "weights": "2"}, "other weights"),
        ({**ORIGIN, "model": "renamed"}, ""),
        ({**ORIGIN, "prompt": "see", "alternatives": 1}, 'prompt "", now "see"; alternatives 0, now 1'),
    ],
)
def test_what_was_made_with_something_else_is_counted_or_made_anew(
    library: Path, tmp_path: Path, origin: dict[str, Any], change: str
):
    run(library, tmp_path / "o.jsonl", origin=ORIGIN)
    assert records(tmp_path / "o.jsonl")[0]["made_with"] == {"weights": "1", "num_beams": 5}
    before = (tmp_path / "o.jsonl").read_bytes()
    counts = run(library, tmp_path / "o.jsonl", origin=origin)
    assert counts.other_origins == ({change: 7} if change else {})
    assert [counts.already, (tmp_path / "o.jsonl").read_bytes()] == [10, before]
    for left in (3, 10):  # what has an error was made with nothing
        counts = run(library, tmp_path / "o.jsonl", origin=origin, update=True, dedupe="bytes")
        assert [counts.already, counts.captioned] == ([left, 10 - left] if change else [10, 0])
    made = {name: value for name, value in origin.items() if name != "model"}
    found = [record["made_with"] for record in records(tmp_path / "o.jsonl") if "caption" in record]
    assert found == [made if change else {"weights": "1", "num_beams": 5}] * 7
    assert numbers(tmp_path / "o.jsonl") == list(range(10))


def test_records_that_do_not_say_what_made_them_stand(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl")
    counts = run(library, tmp_path / "o.jsonl", origin=ORIGIN, update=True)
    assert [counts.already, counts.other_origins] == [10, {}]


@pytest.mark.parametrize("dedupe", [None, "bytes"])
def test_sidecars_are_written_from_the_records_of_an_earlier_run(
    library: Path, tmp_path: Path, dedupe: Dedupe | None
):
    run(library, tmp_path / "o.jsonl", dedupe=dedupe)
    before, fake = (tmp_path / "o.jsonl").read_bytes(), FakeCaptioner()
    for written in (7, 0):
        counts = run(library, tmp_path / "o.jsonl", engine(fake), sidecars=Sidecars("txt"), dedupe=dedupe)
        assert [counts.already, counts.sidecars, counts.sidecars_left] == [10, written, {}]
        assert len(list(library.rglob("*.txt"))) == 7
    assert (library / "a" / "1.txt").read_text() == "a photo 61 wide and 50 high\n"
    assert [(tmp_path / "o.jsonl").read_bytes(), fake.batches] == [before, []]


def test_a_record_says_why_its_sidecar_was_left(library: Path, tmp_path: Path):
    (library / "a" / "1.txt").write_text("mine")
    for _ in range(2):
        counts = run(library, tmp_path / "o.jsonl", sidecars=Sidecars("txt"), dedupe="bytes")
        assert counts.sidecars_left == {"has a text already": 1}
        assert records(tmp_path / "o.jsonl")[1]["sidecar"] == "1.txt has a text already"
        assert (library / "a" / "1.txt").read_text() == "mine"
    (library / "a" / "1.txt").unlink()
    run(library, tmp_path / "o.jsonl", sidecars=Sidecars("txt"), dedupe="bytes")
    assert not any("sidecar" in record for record in records(tmp_path / "o.jsonl"))
    assert numbers(tmp_path / "o.jsonl") == list(range(10))


def test_a_copys_sidecar_is_its_own_affair(library: Path, tmp_path: Path):
    (library / "a" / "0.xmp").write_bytes(b"<damaged")
    run(library, tmp_path / "o.jsonl", sidecars=Sidecars("xmp"), dedupe="bytes")
    found = records(tmp_path / "o.jsonl")
    assert [found[0]["error_kind"], found[2].get("error"), found[9].get("error")] == ["sidecar", None, None]


def test_a_sidecar_that_failed_is_written_without_another_caption(library: Path, tmp_path: Path):
    (library / "a" / "1.xmp").write_bytes(b"<damaged")
    run(library, tmp_path / "o.jsonl", sidecars=Sidecars("xmp"))
    fake = FakeCaptioner()
    counts = run(library, tmp_path / "o.jsonl", engine(fake), sidecars=Sidecars("xmp"))
    assert counts.errors == {"type": 3, "sidecar": 1}
    (library / "a" / "1.xmp").unlink()
    counts = run(library, tmp_path / "o.jsonl", engine(fake), sidecars=Sidecars("xmp"))
    assert [counts.errors, counts.sidecars, fake.batches] == [{"type": 3}, 1, []]
    assert "error" not in records(tmp_path / "o.jsonl")[1]


def test_a_changed_photographs_sidecar_changes_too_unless_a_person_wrote_it(library: Path, tmp_path: Path):
    run(library, tmp_path / "o.jsonl", sidecars=Sidecars("txt"))
    (library / "a" / "4.txt").write_text("mine")
    for number in (1, 4):
        draw_noise(99, 50).save(library / "a" / f"{number}.png")
    counts = run(library, tmp_path / "o.jsonl", sidecars=Sidecars("txt"))
    assert [counts.changed, counts.sidecars_left] == [2, {"has a text already": 1}]
    assert (library / "a" / "1.txt").read_text() == "a photo 99 wide and 50 high\n"
    assert (library / "a" / "4.txt").read_text() == "mine"


def test_a_line_of_a_list_that_is_no_photograph_of_ours(library: Path, tmp_path: Path):
    listed = f"{library}/a/0.png\nhttps://example.org/b.jpg\n{library}/a/1.png\n".encode()
    with RecordLog(tmp_path / "o.jsonl") as log:
        counts = run_batch(
            find_items(["-"], stdin=listed), engine(), log, sidecars=Sidecars("txt"), dedupe="bytes"
        )
    assert [counts.captioned, counts.errors] == [2, {"unreadable": 1}]
    assert records(tmp_path / "o.jsonl")[1]["error"].startswith("https://example.org cannot be read: ")


@pytest.fixture
def rich(tmp_path: Path, library: Path) -> Path:
    """Records of every kind."""
    options = GenerationOptions(num_beams=4, alternatives=2, attention=True)
    captions = LocalEngine(BatchCaptioner(FakeCaptioner(), options))  # type: ignore[arg-type]
    odd = os.fsdecode(b'\xff,"quoted"\n.png')
    draw_noise(70, 50).save(tmp_path / "odd.png")
    (tmp_path / "odd.png").rename(library / "a" / odd)
    run(library, tmp_path / "o.jsonl", captions, dedupe="bytes")
    return tmp_path / "o.jsonl"


def test_csv_has_a_row_for_each_record(rich: Path, tmp_path: Path):
    with RecordLog(rich) as log:
        write_table(tmp_path / "o.csv", log, "csv")
    with open(tmp_path / "o.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = records(rich)
    assert len(rows) == len(expected) == 11
    for row, record in zip(rows, expected, strict=True):
        assert row["file"] == record["file"].encode(errors="backslashreplace").decode()
        assert row["caption"] == record.get("caption", "")
        assert row["error"] == record.get("error", "")
        assert row["duplicate_of"] == record.get("duplicate_of", "")
        if "caption" in record:
            assert float(row["confidence"]) == record["confidence"]
            assert json.loads(row["alternatives"]) == ["another 0", "another 1"]


def test_csv_for_a_spreadsheet_computes_nothing(tmp_path: Path):
    texts = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "Käse", "a = b"]
    rows: list[Record] = [{"file": text, "caption": text, "logprob": -8.1} for text in texts]
    write_table(tmp_path / "o.csv", rows, "csv", excel=True)
    data = (tmp_path / "o.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbffile,caption,")
    with open(tmp_path / "o.csv", encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["caption"] for row in found] == [f"'{text}" for text in texts[:5]] + texts[5:]
    assert [row["file"] for row in found] == [row["caption"] for row in found]
    assert {row["logprob"] for row in found} == {"-8.1"}
    write_table(tmp_path / "o.csv", rows, "csv")
    assert (tmp_path / "o.csv").read_bytes().startswith(b"file,caption,")


def test_parquet_has_all_that_the_records_have(rich: Path, tmp_path: Path):
    with RecordLog(rich) as log:
        write_table(tmp_path / "o.parquet", log, "parquet")
    rows, expected = pq.read_table(tmp_path / "o.parquet").to_pylist(), records(rich)
    assert len(rows) == len(expected)
    for row, record in zip(rows, expected, strict=True):
        assert row["file"] == record["file"].encode(errors="backslashreplace").decode()
        for name in ("caption", "model", "width", "height", "error", "error_kind", "sha256", "duplicate_of"):
            assert row[name] == record.get(name), name
        if "caption" in record:
            assert row["confidence"] == pytest.approx(record["confidence"])
            assert [word["text"] for word in row["words"]] == [word["text"] for word in record["words"]]
            assert row["words"][0]["attention"] == record["words"][0]["attention"]
            assert row["words"][0]["box"] == record["words"][0]["box"]
            assert row["alternatives"][1]["caption"] == "another 1"


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, format: Any):
    path = tmp_path / f"o.{format}"
    write_table(path, [{"file": "a.jpg", "caption": "x"}], format)
    before = path.read_bytes()
    many = ({"file": f"{number}.jpg", "caption": str(number) * 99} for number in range(5000))
    with largest_file(10_000), pytest.raises(DataError, match=r"too large\. Its records are safe"):
        write_table(path, many, format)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_parquet_of_texts_that_are_no_unicode(tmp_path: Path):
    half = {"caption": "\ud83d half", "confidence": 0.5, "logprob": -1.0}
    words = [{"text": "\ud83d", "confidence": 0.5, "logprob": -1.0, "attention": [[0.5, 0.5]]}]
    write_table(
        tmp_path / "o.parquet",
        [{"file": "a.jpg", **half, "alternatives": [half], "unhedged": half, "words": words}],
        "parquet",
    )
    (row,) = pq.read_table(tmp_path / "o.parquet").to_pylist()
    texts = [row["caption"], row["alternatives"][0]["caption"], row["unhedged"]["caption"]]
    assert texts == ["\\ud83d half"] * 3
    assert [row["words"][0]["text"], row["words"][0]["attention"]] == ["\\ud83d", [[0.5, 0.5]]]


def test_parquet_in_groups(tmp_path: Path):
    many = ({"file": f"{number}.jpg", "caption": "x"} for number in range(2500))
    write_table(tmp_path / "o.parquet", many, "parquet")
    file = pq.ParquetFile(tmp_path / "o.parquet")
    assert [file.num_row_groups, file.metadata.num_rows] == [3, 2500]
    write_table(tmp_path / "o.parquet", [], "parquet")
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of now")
def test_memory_stays_flat(tmp_path: Path):
    photo = tmp_path / "photo.jpg"
    draw_noise(300, 200).save(photo)
    sizes: list[int] = []

    def progress(counts: Counts) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))

    items = (Item(f"{number}.jpg", str(photo)) for number in range(2500))
    with RecordLog(tmp_path / "o.jsonl") as log:
        run_batch(items, engine(batch_size=25), log, dedupe=None, progress=progress)
    assert len(sizes) == 100
    assert max(sizes[30:]) - max(sizes[:30]) < 8_000_000  # 1,750 photographs of 180,000 bytes each


def test_captions_that_are_not_sure_get_no_sidecar(library: Path, tmp_path: Path):
    """Every second one of the engine's captions is in doubt."""

    class Doubtful(Backwards):
        def run(self, items: Iterable[Item]) -> Generator[list[Record]]:
            for number, (record,) in enumerate(super().run(items)):
                yield [record | ({"uncertain": True} if "caption" in record and number % 2 else {})]

    run(library, tmp_path / "o.jsonl", Doubtful(engine()), sidecars=Sidecars("txt"))
    found = [record for record in records(tmp_path / "o.jsonl") if "caption" in record]
    with_sidecar = [Path(record["file"]).with_suffix(".txt").exists() for record in found]
    assert with_sidecar == ["uncertain" not in record for record in found]
    assert set(with_sidecar) == {True, False}
    assert [record.get("sidecar", "written") for record in found] == [
        "written" if written else "its caption is uncertain" for written in with_sidecar
    ]
