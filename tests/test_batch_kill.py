"""Nothing is lost: a killed batch goes on, and in the end it is what an undisturbed one would have been."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from batch_kill import Job, differences, prepare, read_records

from captioner.batch.finding import find_items

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FILES, BAD, KILLS = 150, 12, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    prepare(folder, files=FILES, bad=BAD)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Job:
    job = Job(folder, "whole.jsonl", ["--batch-size", "4"])
    summary = job.run()
    assert [summary["captioned"], summary["failed"]] == [FILES - BAD, BAD]
    return job


def test_killed_at_random_moments(folder: Path, undisturbed: Job):
    keys = [item.key for item in find_items([str(folder / "library")], recursive=True)]
    assert [record["file"] for record in read_records(undisturbed.records)] == keys
    job = Job(folder, "killed.jsonl", ["--batch-size", "4"])
    assert job.kill_at_random(KILLS, undisturbed.records.stat().st_size) >= KILLS - 1
    summary = job.run()
    assert summary["captioned"] + summary["failed"] + summary["already"] == FILES
    assert sum(summary["errors"].values()) == BAD
    assert differences(read_records(undisturbed.records), read_records(job.records)) == []
    assert job.run()["already"] == FILES


def test_killed_with_sidecars_duplicates_and_a_table(folder: Path, undisturbed: Job):
    files = {path for path in (folder / "library").rglob("*") if path.is_file()}
    job = Job(folder, "killed.parquet", ["--sidecar", "txt", "--dedupe"])
    assert job.kill_at_random(2, undisturbed.records.stat().st_size) >= 1
    job.run()
    rows, expected = pq.read_table(job.output).to_pylist(), read_records(undisturbed.records)
    assert [(row["file"], row["caption"], row["error"]) for row in rows] == [
        (record["file"], record.get("caption"), record.get("error")) for record in expected
    ]
    first: dict[bytes, str] = {}
    for row in rows:
        path = Path(row["file"])
        if path.exists():
            original = first.setdefault(path.read_bytes(), row["file"])
            assert (row["duplicate_of"] or row["file"]) == original
    assert not list(folder.rglob(".*.tmp"))
    texts = {row["file"][:-4] + ".txt": row["caption"] + "\n" for row in rows if row["caption"]}
    made = {path for path in (folder / "library").rglob("*") if path.is_file()} - files
    assert {str(path): path.read_text() for path in made} == texts


def test_killed_while_captions_and_sidecars_are_brought_up_to_date(folder: Path, undisturbed: Job):
    """Other options, and sidecars from records: one record a photograph, and each sidecar says the same."""
    job = Job(folder, "updated.jsonl", ["--sidecar", "json"])
    job.run()
    job.argv += ["--update", "--max-length", "5"]
    assert job.kill_at_random(3, 2 * job.records.stat().st_size) >= 1
    summary = job.run()
    assert summary["made_otherwise"] == {}
    found = read_records(job.records)
    assert [record["file"] for record in found] == [
        record["file"] for record in read_records(undisturbed.records)
    ]
    for record in found:
        if "caption" in record:
            assert record["made_with"]["max_length"] == 5
            sidecar = Path(record["file"]).with_suffix(".json")
            assert differences(json.loads(sidecar.read_text(encoding="utf-8")), record) == []
    assert not list(folder.rglob(".*.tmp"))
