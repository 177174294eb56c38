"""``captioner batch`` as a user types it, with a fake captioner."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import FakeCaptioner
from full_disk import largest_file
from images import draw_noise, encode
from rich.console import Console
from typer.main import get_command

from captioner import GenerationOptions, OptionsError, SearchOptions
from captioner.batch.counts import Counts
from captioner.batch.finding import NEEDED
from captioner.batch.items import Item
from captioner.batch.progress import ProgressReport
from captioner.cli import app, main
from captioner.image import ImageSource, Photo


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Five photographs, one of them in a folder of its own, and one that is none."""
    for number in range(5):
        path = tmp_path / "library" / ("sub" if number == 4 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_noise(60 + number, 50, seed=number).save(path)
    (tmp_path / "library" / "9.png").write_bytes(b"none")
    return tmp_path / "library"


def run(*argv: str | Path, fake: FakeCaptioner | None = None) -> int:
    captioner: Any = fake or FakeCaptioner()
    return main(["batch", *map(str, argv)], load=lambda name, /, *, device, dtype: captioner)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return dict(json.loads(captured.err.splitlines()[-1]))


def test_a_library_into_json_lines(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(library, "--recursive", "--output", tmp_path / "o.jsonl") == 1
    found = records(tmp_path / "o.jsonl")
    assert [Path(record["file"]).stem for record in found] == ["0", "1", "2", "3", "9", "4"]
    assert found[0]["caption"] == "a photo 60 wide and 50 high"
    assert found[4]["error_kind"] == "type"
    said = summary(capsys)
    assert said.pop("seconds") >= 0
    assert said.pop("images_per_second") > 0
    left_alone = {"changed": 0, "made_otherwise": {}, "sidecars": {"written": 0, "left": {}}, "left_out": {}}
    left_alone["warnings"] = {}
    counts = {"finished": True, "captioned": 5, "failed": 1, "already": 0, "errors": {"type": 1}}
    assert said == counts | left_alone


def test_the_exit_status_is_0_when_all_went_well(library: Path, tmp_path: Path):
    assert run(library / "*.png", "--exclude", "9.*", "-o", tmp_path / "o.jsonl") == 0
    assert len(records(tmp_path / "o.jsonl")) == 4


def test_an_error_of_an_earlier_run_still_counts_until_it_is_retried(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [library, "-o", tmp_path / "o.jsonl"]

    class Mended(FakeCaptioner):
        """Reads the photograph that the other one cannot, from the same bytes."""

        def prepare(self, image: ImageSource, *, name: str | None = None) -> Photo:
            return super().prepare(library / "0.png", name=name)

    assert [run(*argv), run(*argv)] == [1, 1]
    assert run(*argv, fake=Mended()) == 1
    assert summary(capsys)["errors"] == {"type": 1}
    assert run(*argv, "--retry-errors", fake=Mended()) == 0
    assert summary(capsys)["captioned"] == 1
    assert not any("error" in record for record in records(tmp_path / "o.jsonl"))


def test_the_options_of_generation_are_those_of_the_command_caption(library: Path, tmp_path: Path):
    command: Any = get_command(app)
    options = {field.name for field in fields(GenerationOptions)}
    for name in ("batch", "caption"):
        assert options <= {parameter.name for parameter in command.commands[name].params}
    fake = FakeCaptioner()
    words = ["--beams", "5", "--bad-word", "dog", "--bad-word", "cat", "--attention"]
    assert run(library / "0.png", *words, "-o", tmp_path / "o.jsonl", fake=fake) == 0
    expected = replace(fake.default_options, num_beams=5, bad_words=("dog", "cat"), attention=True)
    assert fake.options == [expected]


def test_the_batch_size_is_as_asked(library: Path, tmp_path: Path):
    fake = FakeCaptioner()
    run(library, "-r", "--batch-size", "2", "--workers", "1", "-o", tmp_path / "o.jsonl", fake=fake)
    assert fake.batches == [2, 2, 1]


@pytest.mark.parametrize(("name", "more"), [("o.csv", []), ("table", ["--format", "csv"])])
def test_csv_goes_on_from_its_records(library: Path, tmp_path: Path, name: str, more: list[str]):
    fake = FakeCaptioner()
    assert run(library / "0.png", "-o", tmp_path / name, *more, fake=fake) == 0
    assert run(library, "-r", "-o", tmp_path / name, *more, fake=fake) == 1
    assert sum(fake.batches) == 5
    with open(tmp_path / name, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows if row["caption"]] == [
        f"a photo {60 + number} wide and 50 high" for number in range(5)
    ]
    assert len(records(tmp_path / f"{name}.jsonl")) == len(rows) == 6
    assert {row["calibrated"] for row in rows if row["caption"]} == {"False"}  # what the confidence means


def test_parquet(library: Path, tmp_path: Path):
    assert run(library, "-o", tmp_path / "o.parquet") == 1
    assert pq.read_table(tmp_path / "o.parquet")["caption"].to_pylist()[0] == "a photo 60 wide and 50 high"


def test_a_table_that_is_not_ours_is_not_overwritten(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "o.csv").write_text("mine")
    for existing in ("skip", "append"):
        assert run(library, "-o", tmp_path / "o.csv", "--existing", existing) == 1
        assert "choose another output" in capsys.readouterr().err
        assert (tmp_path / "o.csv").read_text() == "mine"
    assert run(library, "-o", tmp_path / "o.csv", "--existing", "overwrite") == 1
    assert (tmp_path / "o.csv").read_text().startswith("file,caption")


@pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
def test_a_table_that_somebody_has_changed_is_not_overwritten(
    library: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    table, argv = tmp_path / name, [library / "0.png", library / "1.png", "-o", tmp_path / name]
    assert [run(*argv[1:]), run(*argv)] == [0, 0]
    os.utime(table, ns=(table.stat().st_mtime_ns + 1_000_000,) * 2)
    mine = table.read_bytes()
    fake = FakeCaptioner()
    assert run(library, *argv, fake=fake) == 1
    assert "has been changed since it was written" in capsys.readouterr().err
    assert [table.read_bytes(), fake.batches] == [mine, []]
    table.rename(tmp_path / "mine")
    assert run(*argv) == 0
    assert table.read_bytes() == mine
    table.touch()
    assert run(*argv, "--existing", "overwrite") == 0


def test_no_sidecar_takes_the_outputs_place(library: Path):
    argv = [library / "0.png", "--sidecar", "txt", "--existing", "overwrite", "-o", library / "0.txt"]
    assert run(*argv) == 1
    (record,) = records(library / "0.txt")
    assert record["error"].startswith("its sidecar 0.txt would take the place of a file of this run")


def test_existing_records_are_overwritten_or_added_to(library: Path, tmp_path: Path):
    argv = [library / "0.png", "-o", tmp_path / "o.jsonl"]
    captions = [
        "a photo 60 wide and 50 high",
        "see a photo 60 wide and 50 high",
        "look a photo 60 wide and 50 high",
    ]
    run(*argv)
    run(*argv, "--existing", "overwrite", "--prompt", "see")
    assert [record["caption"] for record in records(tmp_path / "o.jsonl")] == captions[1:2]
    run(*argv, "--existing", "append", "--prompt", "look")
    assert [record["caption"] for record in records(tmp_path / "o.jsonl")] == captions[1:]


@pytest.mark.parametrize(("kind", "name"), [("txt", "0.txt"), ("json", "0.json"), ("xmp", "0.xmp")])
def test_sidecars(library: Path, tmp_path: Path, kind: str, name: str):
    argv = [library / "0.png", "--sidecar", kind, "--existing", "append"]
    assert run(*argv, "-o", tmp_path / "a.jsonl") == 0
    assert run(*argv, "-o", tmp_path / "b.jsonl", "--prompt", "see") == 0
    text = (library / name).read_text(encoding="utf-8")
    assert text.count("a photo 60 wide and 50 high") == 2
    assert text.count("see a photo") == 1
    assert run(*argv, "-o", tmp_path / "c.jsonl", "--sidecar-name", "full") == 0
    assert (library / f"0.png.{kind}").is_file() == (kind != "xmp"), "a second XMP would hide the first one"


def test_a_report_shows_all_photographs(library: Path, tmp_path: Path):
    fake = FakeCaptioner()
    run(library / "0.png", "-o", tmp_path / "o.jsonl", "--attention")
    assert run(library, "-r", "-o", tmp_path / "o.jsonl", "--report", tmp_path / "o.html", fake=fake) == 1
    page = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert [page.count(f"a photo {60 + number} wide and 50 high") > 0 for number in range(5)] == [True] * 5
    assert str(library / "9.png") in page
    assert all(options.attention for options in fake.options)


def test_shards_lists_and_the_output_among_the_inputs(library: Path, tmp_path: Path):
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(library / "0.png", "first.png")
    (tmp_path / "list.txt").write_text(f"{library / '1.png'}\n")
    inputs = [tmp_path / "s.tar", tmp_path / "list.txt", library / "2.png", tmp_path / "o.jsonl"]
    for _ in range(2):
        assert run(*inputs, "-o", tmp_path / "o.jsonl", "--sidecar", "txt") == 0
    found = records(tmp_path / "o.jsonl")
    assert [record["file"] for record in found] == [
        f"{tmp_path}/s.tar!first.png",
        str(library / "1.png"),
        str(library / "2.png"),
    ]
    assert found[0]["caption"] == "a photo 60 wide and 50 high"
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["1.txt", "2.txt", "list.txt"]


def test_photos_beside_which_nothing_can_stand_are_counted(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(library / "0.png", "first.png")
    for _ in range(2):
        assert run(tmp_path / "s.tar", library / "0.png", "-o", tmp_path / "o.jsonl", "--sidecar", "txt") == 0
        err = capsys.readouterr().err
        left = json.loads(err.splitlines()[-1])["sidecars"]["left"]
        assert list(left.values()) == [1]
        assert "s.tar!first.png: it is in a shard" in err
        assert "--existing" not in err


def test_nothing_to_caption_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "-o", tmp_path / "o.jsonl") == 1
    assert "no photographs in" in capsys.readouterr().err


def test_photos_for_which_a_package_is_missing_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(NEEDED, "RAW", ("no_such_module", "captioner[raw]"))
    photos, advice = tmp_path / "photos", "to caption them: pip install 'captioner[raw]'"
    photos.mkdir()
    for name in ("1.CR2", "2.nef", "3.dng"):
        (photos / name).write_bytes(b"II*\0")
    assert run(photos, "-o", tmp_path / "o.jsonl") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no photographs in {photos}; RAW files left out: 3; {advice}" in line
    draw_noise(60, 50).save(photos / "1.jpg")
    assert run(photos, "-o", tmp_path / "o.jsonl") == 0
    said = capsys.readouterr().err
    assert f"RAW files left out: 3; {advice}\n" in said
    assert "--all-files" not in said
    assert json.loads(said.splitlines()[-1])["left_out"] == {"RAW": 3}
    assert [Path(record["file"]).name for record in records(tmp_path / "o.jsonl")] == ["1.jpg"]


def test_raw_files_are_photographs_where_they_are_read(tmp_path: Path):
    pytest.importorskip("rawpy")
    (tmp_path / "1.CR2").write_bytes(b"no photograph")
    assert run(tmp_path, "-o", tmp_path / "o.jsonl") == 1
    assert records(tmp_path / "o.jsonl")[0]["error_kind"] == "type"


def test_a_photo_whose_end_is_missing_has_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = encode(draw_noise(160, 160), "JPEG", quality=90)
    (tmp_path / "1.jpg").write_bytes(data[: len(data) * 3 // 4])
    output = tmp_path / "o.csv"
    assert run(tmp_path / "1.jpg", "-o", output) == 0
    assert summary(capsys)["warnings"] == {"incomplete": 1}
    (row,) = csv.DictReader(io.StringIO(output.read_text(encoding="utf-8")))
    assert row["warning"].startswith("incomplete: the last ")
    assert row["caption"] == "a photo 160 wide and 160 high"


@pytest.mark.parametrize("value", [[], ["bytes"]])
def test_dedupe_alone_is_of_equal_bytes(tmp_path: Path, value: list[str]):
    for name in ("1.png", "2.png", "1.bmp"):
        draw_noise(60, 50).save(tmp_path / name)
    fake = FakeCaptioner()
    assert run("--dedupe", *value, tmp_path, "-o", tmp_path / "o.jsonl", fake=fake) == 0
    assert sum(fake.batches) == 2
    assert run(tmp_path, "-o", tmp_path / "p.jsonl", "--dedupe", *value) == 0
    fake = FakeCaptioner()
    assert run(tmp_path, "-o", tmp_path / "q.jsonl", "--dedupe", "stem", fake=fake) == 0
    assert sum(fake.batches) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["--format", "xlsx"],
        ["--sidecar", "iptc"],
        ["--existing", "keep"],
        ["--batch-size", "0"],
        ["--engine", "spark"],
        ["--report", "report.pdf"],
        ["--report", "none/report.html"],
        ["--beams", "4", "--alternatives", "9"],
        ["--excel"],
        ["--report", "o.jsonl.html", "-o", "o.jsonl.html"],
        ["--prefix", "x"],
        ["--sidecar", "xmp", "--suffix", "x"],
        ["--sidecar", "txt", "--template", "a photo"],
        ["--sidecar", "txt", "--prefix", "two\nlines"],
        ["--sidecar-name", "full"],
        ["-o", "-"],
        ["-o", "captions.xlsx"],
        ["-o", "captions.jsonl.gz"],
        ["-o", os.devnull],
        ["-o", os.curdir],
    ],
)
def test_wrong_usage(library: Path, tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(library, "-o", tmp_path / "o.jsonl", *wrong) == 2
    assert capsys.readouterr().err


def test_a_second_run_says_what_it_leaves_alone_and_which_option_does_otherwise(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = [library / "?.png", "--exclude", "9.*", "-o", tmp_path / "o.jsonl", "--sidecar", "txt"]
    assert run(*argv) == 0
    (library / "0.txt").write_text("mine")
    draw_noise(99, 50).save(library / "1.png")
    (library / "@eaDir").mkdir()
    capsys.readouterr()
    assert run(*argv, library, "--recursive", "--prompt", "see") == 0
    *said, last = capsys.readouterr().err.splitlines()
    assert said == [
        "captioner: photographs captioned anew since their files had changed: 1",
        'captioner: captions left that were made otherwise (prompt "", now "see"): 3; '
        "--update makes them anew",
        f"captioner: sidecars not written: 1, as for {library}/0.png: 0.txt has a text already; "
        "--existing overwrite or append writes them all the same",
        "captioner: not looked into: 1 × @eaDir; --all-files takes them too",
    ]
    found = json.loads(last)
    assert [found["changed"], found["made_otherwise"]] == [1, {'prompt "", now "see"': 3}]
    assert [found["sidecars"], found["left_out"]] == [
        {"written": 2, "left": {"has a text already": 1}},
        {"@eaDir": 1},
    ]
    assert run(*argv, "--prompt", "see", "--update", "--quiet") == 0
    assert capsys.readouterr().err == ""
    captions = [record["caption"] for record in records(tmp_path / "o.jsonl")]
    assert len(captions) == 5
    assert all(caption.startswith("see ") for caption in captions)


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_run_that_has_nothing_to_do_leaves_nothing_behind(
    tmp_path: Path, name: str, existing: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty" / "#recycle").mkdir(parents=True)
    fake = FakeCaptioner()
    argv = [tmp_path / "empty", "-r", "-o", tmp_path / name, "--existing", existing, "--report"]
    assert run(*argv, tmp_path / "o.html", fake=fake) == 1
    assert "--all-files takes hidden files" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_that_was_complete_leaves_no_lock(library: Path, tmp_path: Path):
    for _ in range(2):
        run(library, "-o", tmp_path / "o.jsonl")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "o.jsonl"]


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    fake = FakeCaptioner()
    argv = [library, "-o", tmp_path / "o.jsonl", "--report", tmp_path / "o.html"]
    with largest_file(100_000):
        assert run(*argv, fake=fake) == 1
    assert "the report cannot be written: File too large" in capsys.readouterr().err
    (tmp_path / "o.html").write_text("<title>my page</title>")
    assert run(*argv, fake=fake) == 1
    assert "is another page" in capsys.readouterr().err
    assert (tmp_path / "o.html").read_text() == "<title>my page</title>"
    assert fake.batches == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library", "o.html"]
    (tmp_path / "o.html").unlink()
    assert [run(*argv), run(*argv)] == [1, 1], "a report of ours is replaced"
    assert "another page" not in capsys.readouterr().err


def test_a_list_with_a_line_that_is_not_read(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "list.txt").write_text(f"{library}/0.png\nhttps://example.org/b.jpg\n{library}/1.png\n")
    assert run(tmp_path / "list.txt", "-o", tmp_path / "o.jsonl", "--sidecar", "txt") == 1
    found = records(tmp_path / "o.jsonl")
    assert ["caption" in record for record in found] == [True, False, True]
    assert found[1]["file"] == "https://example.org/b.jpg"
    assert summary(capsys)["errors"] == {"unreadable": 1}


def test_text_sidecars_as_trainers_want_them(library: Path, tmp_path: Path):
    argv = [library / "0.png", "-o", tmp_path / "o.jsonl", "--sidecar", "caption"]
    assert run(*argv, "--prefix", "ohwx woman, ", "--suffix", ", photo") == 0
    assert (library / "0.caption").read_text() == "ohwx woman, a photo 60 wide and 50 high, photo\n"
    argv[-1] = "txt"
    assert run(*argv, "--template", "[{caption}]") == 0
    assert (library / "0.txt").read_text() == "[a photo 60 wide and 50 high]\n"
    assert records(tmp_path / "o.jsonl")[0]["caption"] == "a photo 60 wide and 50 high"
    assert run(library / "*", "-r", "--exclude", "9.png", "-o", tmp_path / "p.jsonl") == 0


def test_excel(library: Path, tmp_path: Path):
    assert run(library / "0.png", "-o", tmp_path / "o.csv", "--excel", "--prompt", "=see") == 0
    assert (tmp_path / "o.csv").read_text(encoding="utf-8-sig").count("'=see a photo 60") == 1
    assert (tmp_path / "o.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_an_output_is_required(library: Path):
    assert run(library) == 2


@pytest.mark.parametrize("more", [[], ["--quiet"]])
def test_what_is_wrong_is_named_where_there_is_no_terminal(
    library: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
):
    for _ in range(2):
        assert run(library, "-o", tmp_path / "o.jsonl", *more) == 1
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith("{")]
        assert out == ""
        assert f"captioner: 1 × type, such as {library / '9.png'}: is not an image" in "\n".join(said)
        assert len(said) == (len(err.splitlines()) if more else len(err.splitlines()) - 1)


def test_quiet_says_nothing_where_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw_noise(60, 50).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "-o", tmp_path / "o.jsonl", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes import FakeCaptioner
from full_disk import largest_file
from captioner.cli import app, main
from captioner.image import ImageSource, Photo
class Slow(FakeCaptioner):
    def caption_prepared(self, images, options):
        time.sleep(0.2)
        return super().caption_prepared(images, options)
sys.exit(main(sys.argv[1:], load=lambda name, **_: Slow()))
"""


@contextmanager
def process(*argv: str | Path, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    script = SLOW.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, "batch", *map(str, argv)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings) as running:
        yield running


@pytest.fixture
def closing_terminal_ends() -> Iterator[None]:
    """Processes started meanwhile end by SIGHUP, even where the tests themselves run under nohup."""
    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGHUP, lambda *_: None)  # a new program has the default in its place
    yield
    signal.signal(signal.SIGHUP, before)


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])]
)
@pytest.mark.usefixtures("closing_terminal_ends")
def test_a_signal_stops_after_the_batch_and_the_same_command_goes_on(
    library: Path, tmp_path: Path, number: int
):
    argv = [library, "-r", "-o", tmp_path / "o.csv", "--batch-size", "1"]
    with process(*argv) as running:
        wait_for(tmp_path / "o.csv.jsonl", 2)
        running.send_signal(number)
        _, said = running.communicate()
    assert running.returncode == 128 + number
    assert "stopping after this batch" in said
    assert said.splitlines()[-1] == "captioner: stopped; the same command goes on"
    assert json.loads(said.splitlines()[-2])["finished"] is False
    done = records(tmp_path / "o.csv.jsonl")
    assert 2 <= len(done) < 6
    assert len((tmp_path / "o.csv").read_text().splitlines()) == len(done) + 1
    assert run(*argv) == 1
    assert len(records(tmp_path / "o.csv.jsonl")) == 6
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 7


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes no stdin")
def test_a_closed_stdin_is_an_empty_list(tmp_path: Path):
    with process("-", "-o", tmp_path / "o.jsonl", preexec_fn=lambda: os.close(0)) as running:
        _, said = running.communicate()
    assert running.returncode == 1
    assert said.startswith("captioner: no photographs in -")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
@pytest.mark.usefixtures("closing_terminal_ends")
def test_a_run_whose_terminal_is_closed_stops_and_writes_its_table(library: Path, tmp_path: Path):
    ours, theirs = os.openpty()
    script = SLOW.format(tests=str(Path(__file__).parent))
    argv = ["batch", library, "-r", "-o", tmp_path / "o.csv", "--batch-size", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, argv)], stdin=theirs, stderr=theirs, start_new_session=True
    ) as running:
        os.close(theirs)
        wait_for(tmp_path / "o.csv.jsonl", 2)
        os.close(ours)
        running.send_signal(signal.SIGHUP)
    assert running.returncode == 128 + signal.SIGHUP
    done = len(records(tmp_path / "o.csv.jsonl"))
    assert 2 <= done < 6
    assert len((tmp_path / "o.csv").read_text().splitlines()) == done + 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no nohup")
def test_a_run_under_nohup_outlives_its_terminal(library: Path, tmp_path: Path):
    script = SLOW.format(tests=str(Path(__file__).parent))
    argv = ["batch", library, "-r", "-o", tmp_path / "o.jsonl", "--batch-size", "1"]
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", script, *map(str, argv)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        wait_for(tmp_path / "o.jsonl", 1)
        running.send_signal(signal.SIGHUP)
    assert len(records(tmp_path / "o.jsonl")) == 6


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_list_comes_from_stdin(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["-", "-o", tmp_path / "o.jsonl", "--batch-size", "1"]
    with process(*argv, stdin=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(f"{library}/0.png\0{library}\0{library}/sub/4.png\0")
        running.stdin.close()
        wait_for(tmp_path / "o.jsonl", 1)
        assert run(library, "-o", tmp_path / "o.jsonl") == 1
        assert "another run is writing to it" in capsys.readouterr().err
        running.wait()
    names = [Path(record["file"]).name for record in records(tmp_path / "o.jsonl")]
    assert names == ["0.png", "1.png", "2.png", "3.png", "9.png", "4.png"]


def test_options_that_the_model_refuses_leave_nothing_behind(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    class Strict(FakeCaptioner):
        def check_options(self, options: SearchOptions) -> None:
            raise OptionsError(f"max_length {options.max_length} exceeds this model's positions")

    before = sorted(tmp_path.iterdir())
    assert run(library, "-o", tmp_path / "o.jsonl", "--max-length", "400", fake=Strict()) == 2
    assert "--max-length 400 exceeds" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def counts(**values: Any) -> Counts:
    """After ten seconds."""
    times = iter([0.0])
    return Counts(clock=lambda: next(times, 10.0), **values)


def thousand() -> list[Item]:
    return [Item("a", "a")] * 1012


def test_a_bar_on_a_terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with ProgressReport(thousand, console=console) as progress:
        while progress.total is None:
            time.sleep(0.001)
        progress.update(counts(captioned=380, failed=20, already=100))
    for text in ("500/1012", "20 failed", "40.0 images/s", "0:13 left"):
        assert text in screen.getvalue()


def test_lines_of_json_elsewhere(capsys: pytest.CaptureFixture[str]):
    for quiet, every in ((False, 0), (False, 1000), (True, 0)):
        console = Console(file=io.StringIO())
        with ProgressReport(thousand, quiet=quiet, console=console, every=every) as progress:
            while progress.total is None and not quiet:
                time.sleep(0.001)
            progress.update(counts(captioned=380, failed=20, already=100))
    assert json.loads(capsys.readouterr().err) == {
        "done": 500,
        "total": 1012,
        "failed": 20,
        "images_per_second": 40.0,
        "seconds_left": 13,
    }


def test_a_summary_by_kind_on_a_terminal(capsys: pytest.CaptureFixture[str]):
    result = counts(captioned=9000, failed=2, already=5)
    for number in range(2):
        result.note_error({"file": f"{number}\n.jpg", "error": "is empty", "error_kind": "damaged"})
    result.note_error({"file": "x.jpg", "error": "is a PDF document", "error_kind": "type"})
    ProgressReport(list, console=Console(file=io.StringIO(), force_terminal=True)).summary(result)
    assert capsys.readouterr().err.splitlines() == [
        "captioner: 9000 captioned, 2 failed in 0:10, 900.2 images/s; 5 were done before",
        r"captioner: 2 × damaged, such as 0\n.jpg: is empty",
        "captioner: 1 × type, such as x.jpg: is a PDF document",
    ]
