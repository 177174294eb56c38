"""``captioner watch``: photographs that arrive in a folder, however slowly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCaptioner
from images import draw_noise, encode

from captioner import GenerationOptions
from captioner.batch.job import Job
from captioner.batch.settings import BatchOptions
from captioner.batch.watch_command import Settling, Watch
from captioner.cli import main
from captioner.errors import DataError


class Folder:
    """A folder that is watched, on a clock of its own.

    Attributes:
        now: the clock's seconds.
        fake: the model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / "incoming"
        self.path.mkdir()
        self.output = path / "o.jsonl"
        self.now = 0.0
        self.fake = FakeCaptioner()

    def add(self, name: str, seed: int = 0, *, part: float = 1.0) -> None:
        """Write the first part of a photograph."""
        data = encode(draw_noise(60 + seed, 50, seed=seed), "PNG")
        (self.path / name).write_bytes(data[: int(part * len(data))])

    def watch(self, changes: Iterator[object], **options: Any) -> None:
        job = Job(BatchOptions(**{"output": self.output, "quiet": True, **options}), [str(self.path)])
        fake: Any = self.fake
        job.load(lambda name, **_: fake, GenerationOptions())
        with job.open_log() as log:
            settling = Settling(1.0, clock=lambda: self.now)
            Watch(job, log, str(self.path), settling, stop=lambda: False).run(changes)

    def captions(self) -> dict[str, str]:
        if not self.output.exists():
            return {}
        records = map(json.loads, self.output.read_text(encoding="utf-8").splitlines())
        return {Path(record["file"]).name: record.get("caption", "error") for record in records}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_what_is_there_and_what_arrives(folder: Folder):
    folder.add("0.png")

    def changes() -> Iterator[object]:
        folder.now += 1
        yield ()
        assert folder.captions() == {"0.png": "a photo 60 wide and 50 high"}
        folder.add("1.png", 1)
        os.rename(folder.path / "1.png", folder.path / "2.png")
        yield {"2.png"}
        assert len(folder.captions()) == 1, "it may still be being written"
        folder.now += 1
        yield ()
        assert folder.captions().keys() == {"0.png", "2.png"}
        yield ()
        yield {"nothing new"}

    folder.watch(changes())
    assert folder.fake.batches == [1, 1]


def test_a_file_that_is_written_slowly_is_captioned_once_and_whole(folder: Folder):
    def changes() -> Iterator[object]:
        yield ()
        for part in (0.0, 0.3, 0.6, 1.0):
            folder.add("0.png", part=part)
            yield {"0.png"}
            folder.now += 0.9
            yield ()
            assert folder.captions() == {}
        folder.now += 0.2
        yield ()
        assert folder.captions() == {"0.png": "a photo 60 wide and 50 high"}

    folder.watch(changes())
    assert folder.fake.batches == [1]


def test_a_file_that_stood_still_too_early_is_done_again(folder: Folder):
    (folder.path / "0.png").write_bytes(b"")

    def changes() -> Iterator[object]:
        folder.now += 1
        yield ()
        assert folder.captions() == {"0.png": "error"}
        folder.add("0.png")
        yield {"0.png"}
        folder.now += 1
        yield ()

    folder.watch(changes(), sidecar="txt")
    assert folder.captions() == {"0.png": "a photo 60 wide and 50 high"}
    assert (folder.path / "0.txt").read_text() == "a photo 60 wide and 50 high\n"


def test_a_file_that_was_not_there_when_it_was_read_is_taken_when_it_is(folder: Folder):
    os.symlink(folder.path / "elsewhere", folder.path / "0.png")

    def changes() -> Iterator[object]:
        folder.now += 1
        yield ()
        assert folder.captions() == {"0.png": "error"}
        folder.add("elsewhere")
        yield {"elsewhere"}
        folder.now += 1
        yield ()

    folder.watch(changes())
    assert folder.captions() == {"0.png": "a photo 60 wide and 50 high"}


def test_a_second_watch_goes_on_and_writes_sidecars_of_what_is_done(folder: Folder):
    folder.add("0.png")

    def changes() -> Iterator[object]:
        folder.now += 1
        yield ()

    folder.watch(changes())
    folder.watch(changes(), sidecar="txt")
    assert folder.fake.batches == [1]
    assert (folder.path / "0.txt").is_file()


def test_a_table_is_written_anew_unless_somebody_has_changed_it(folder: Folder, tmp_path: Path):
    table = tmp_path / "o.csv"

    def changes() -> Iterator[object]:
        for number in range(2):
            folder.add(f"{number}.png", number)
            yield {"a file"}
            folder.now += 1
            yield ()
            assert len(table.read_text().splitlines()) == number + 2
        table.write_text("mine")
        os.utime(table, ns=(table.stat().st_mtime_ns + 1_000_000_000,) * 2)
        folder.add("3.png")
        yield {"3.png"}
        folder.now += 1
        yield ()

    with pytest.raises(DataError, match="has been changed since it was written"):
        folder.watch(changes(), output=table)
    assert table.read_text() == "mine"


def test_a_folder_into_which_nothing_came_leaves_nothing_behind(folder: Folder, tmp_path: Path):
    for _ in range(2):
        folder.watch(iter([(), ()]), output=tmp_path / "o.csv")
        assert [path.name for path in tmp_path.iterdir()] == ["incoming"]


@pytest.mark.parametrize(
    ("gone", "problem"),
    [("incoming", "incoming is not there any more"), ("o.jsonl", "o.jsonl was removed or replaced")],
)
def test_what_is_gone_ends_it_with_a_sentence(folder: Folder, tmp_path: Path, gone: str, problem: str):
    folder.add("0.png")

    def changes() -> Iterator[object]:
        folder.now += 1
        yield ()
        folder.add("1.png")
        yield {"1.png"}
        (tmp_path / gone).rename(tmp_path / "moved")
        folder.now += 1
        yield ()

    with pytest.raises(DataError, match=problem):
        folder.watch(changes())


@pytest.mark.parametrize(
    ("more", "status", "problem"),
    [
        (["--engine", "ray"], 2, "runs on this machine"),
        (["--settle", "0"], 2, "settle"),
        (["--report", "x.pdf"], 2, ".html"),
    ],
)
def test_wrong_usage(
    folder: Folder, more: list[str], status: int, problem: str, capsys: pytest.CaptureFixture[str]
):
    argv = ["watch", str(folder.path), "-o", str(folder.output), *more]
    assert main(argv, load=lambda name, /, **_: FakeCaptioner()) == status
    assert problem in capsys.readouterr().err
    assert main(["watch", str(folder.path / "none"), "-o", str(folder.output)]) == 1


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from fakes import FakeCaptioner
from captioner.cli import main
sys.exit(main(sys.argv[1:], load=lambda name, **_: FakeCaptioner()))
"""


def wait_for(folder: Folder, count: int) -> None:
    """Until there are so many photographs, all captioned whole."""
    whole = {f"{number}.png": f"a photo {60 + number} wide and 50 high" for number in range(count)}
    deadline = time.monotonic() + 120
    while folder.captions() != whole:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("more", [[], pytest.param(["--poll"], marks=pytest.mark.slow)])
def test_sigterm_ends_the_real_thing(folder: Folder, more: list[str]):
    """Also while a file arrives slowly, and one under another name."""
    folder.output = folder.path / "captions.jsonl"  # where it is when nothing is said
    folder.add("0.png")
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    argv = ["watch", str(folder.path), "--settle", "0.3", *more]
    with subprocess.Popen(
        [sys.executable, "-c", script, *argv], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for(folder, 1)
            for part in (0.3, 0.6, 1.0):
                folder.add("1.png", 1, part=part)
                time.sleep(0.05)
            folder.add("2.part", 2)
            (folder.path / "2.part").rename(folder.path / "2.png")
            wait_for(folder, 3)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "captioner: stopped; the same command goes on"
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["0.png", "1.png", "2.png", "captions.jsonl"]
