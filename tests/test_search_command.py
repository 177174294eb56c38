"""``captioner search``: photographs by the words of their captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import make_caption
from images import draw_noise

from captioner.cli import main

CAPTIONS = {
    "1.png": "two brown dogs run through the long green grass by the river",
    "2.png": "a dog sleeps",
    "3.png": "a café at night",
    "4.png": "a man walks a brown dog",
    "5.png": "a cat",
}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    draw_noise(60, 50).save(tmp_path / "2.png")
    found: list[dict[str, Any]] = [
        {**make_caption(text).to_dict(), "file": str(tmp_path / name)} for name, text in CAPTIONS.items()
    ]
    found[4]["alternatives"] = [{"caption": "perhaps a dog", "confidence": 0.1, "logprob": -9.0}]
    found[2]["unhedged"] = {
        "caption": "a café at night with a \ud800 dog",
        "confidence": 0.1,
        "logprob": -9.0,
    }
    found.append({"file": "bad.png", "error": "the dog ate it", "error_kind": "damaged"})
    found.insert(0, {**found[4], "caption": "a dog of long ago"})  # which a later record replaces
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found), encoding="utf-8")
    return tmp_path / "o.jsonl"


def search(records: Path, *argv: str) -> int:
    return main(["search", str(records), *argv])


def names(out: str) -> list[str]:
    return [Path(line.split("\t")[0]).stem for line in out.splitlines()]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["dogs"], ["2", "4", "1"]),  # the shorter the caption, the better
        (["Dog", "BROWN"], ["4", "1"]),
        (["brown dog"], ["4", "1"]),
        (['"brown dog" man'], ["4"]),
        (['"dog brown"'], []),
        (["running"], ["1"]),
        (["cafe"], ["3"]),
        (["dog", "cat"], []),
    ],
)
def test_all_words_in_any_form_best_first(
    records: Path, words: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
):
    assert search(records, *words) == (0 if found else 1)
    captured = capsys.readouterr()
    assert names(captured.out) == found
    assert (len(captured.err.splitlines()), "no caption has all of these" in captured.err) == (
        (0, False) if found else (1, True)
    )


@pytest.mark.parametrize(
    "words",
    [
        "dog*",
        "-dog",
        '"dog',
        "dog AND",
        "NEAR(dog",
        "caption : dog",
        "^dog",
        "{a} : dog",
        "dog';--",
        '"" dog',
    ],
)
def test_no_word_has_a_meaning_of_its_own(records: Path, words: str, capsys: pytest.CaptureFixture[str]):
    assert search(records, "--", words) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "***", '"'])
def test_no_word_at_all_is_wrong_usage(records: Path, words: str, capsys: pytest.CaptureFixture[str]):
    assert search(records, words) == 2
    assert "there is no word to search for" in capsys.readouterr().err


def test_alternatives_come_after_captions(records: Path, capsys: pytest.CaptureFixture[str]):
    assert search(records, "dog", "--alternatives") == 0
    found = names(capsys.readouterr().out)
    assert found[:3] == ["2", "4", "1"]
    assert sorted(found[3:]) == ["3", "5"]


def test_limit_and_json(records: Path, capsys: pytest.CaptureFixture[str]):
    assert search(records, "dog", "--json", "--limit", "1") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["caption"] == "a dog sleeps"
    assert captured.err == "captioner: 1 of 3 are shown; --limit 0 shows all\n"
    assert search(records, "dog", "--limit", "0") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        ("child woman man", True),
        ('"two women"', True),
        ('"two woman"', True),
        ("children knife", True),
        ("lie", True),
        ("strasse", True),
        ("STRASSE", True),
        ("\uff34-shirt", True),  # of full width
        ("shirt", True),
        ("fi\u0301n", True),  # an accent of its own
        ("猫", True),
        ("日本の", True),
        ("本日", False),
        ("he", False),
        ("two_women", True),
    ],
)
def test_spellings_and_irregular_forms(tmp_path: Path, words: str, is_found: bool):
    text = "Two women lying near a child, men with knives and t-shirts on a Straße, \ufb01n 日本の猫"
    (tmp_path / "o.jsonl").write_text(
        json.dumps({**make_caption(text).to_dict(), "file": "a.jpg"}) + "\n", encoding="utf-8"
    )
    assert search(tmp_path / "o.jsonl", words) == int(not is_found)


def test_lines_that_are_no_records_are_named(records: Path, capsys: pytest.CaptureFixture[str]):
    with open(records, "a", encoding="utf-8") as file:
        file.write('\n{"file": "dog.png", "caption": "a dog of another program"}\n')
    assert search(records, "cat") == 1
    out, err = capsys.readouterr()
    assert names(out) == ["5"]
    assert "what is no record of a batch, in line 9;" in err


def test_a_gallery_of_what_is_found(records: Path, tmp_path: Path):
    assert search(records, "zebra", "--report", str(tmp_path / "g.html")) == 1
    assert not (tmp_path / "g.html").exists()
    assert search(records, "dog", "--limit", "2", "--report", str(tmp_path / "g.html")) == 0
    page = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert page.count('<script type="text/html"') == 2
    assert page.count('src="data:image') == 1
    assert search(records, "dog", "--report", str(tmp_path / "g.pdf")) == 2
