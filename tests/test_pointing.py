"""The pointing game against boxes and maps whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioner import Caption, DataError
from captioner.caption import Word
from captioner.evaluation.pointing import ObjectBoxes, pointing_game


def instances(**changes: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "0007.jpg", "width": 200, "height": 100},
            {"id": 8, "file_name": "0008.jpg", "width": 50, "height": 50},
        ],
        "annotations": [
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 50]},  # the upper left quarter
            {"image_id": 7, "category_id": 2, "bbox": [150, 0, 50, 100]},  # the right quarter
            {"image_id": 8, "category_id": 1, "bbox": [10, 10, 30, 30]},  # the middle
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dining table"}],
        **changes,
    }


def boxes(tmp_path: Path, **changes: Any) -> ObjectBoxes:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(instances(**changes)))
    return ObjectBoxes.from_file(path)


def caption(file: str, **peaks: tuple[int, int]) -> Caption:
    """Words whose attention has its peak at a row and a column of a grid of 2 × 4."""
    words = tuple(
        Word(
            text=text,
            logprob=-1.0,
            confidence=0.5,
            attention=tuple(
                tuple(0.65 if (row, column) == peak else 0.05 for column in range(4)) for row in range(2)
            ),
        )
        for text, peak in peaks.items()
    )
    return Caption(
        file=file,
        model="m",
        width=256,
        height=256,  # the photos were resized: boxes count as shares
        caption=" ".join(peaks),
        confidence=0.5,
        logprob=-1.0,
        words=words,
    )


def test_a_hit_is_a_peak_inside_a_box_of_what_the_word_names(tmp_path: Path):
    captions = {
        "a": caption("photos/0007.webp", women=(0, 1), sits=(0, 0), tables=(1, 3)),  # two hits
        "b": caption("photos/0008.webp", man=(1, 3)),  # no hit; the centre would have been one
        "c": caption("photos/0009.webp", man=(0, 0)),  # of this photo nothing is known
    }
    found = pointing_game(captions, boxes(tmp_path))
    assert found.nouns == 3
    assert found.hit == pytest.approx(100 * 2 / 3)
    assert found.centre == pytest.approx(100 * 1 / 3)
    # cells inside: 2 of 8 for the person, 2 of 8 for the table, 4 of 8 for the person in the middle
    assert found.random == pytest.approx(100 * (2 / 8 + 2 / 8 + 4 / 8) / 3)


def test_words_without_attention_or_without_an_object_do_not_play(tmp_path: Path):
    found = pointing_game({"a": caption("0007.webp", dog=(0, 0), a=(0, 0))}, boxes(tmp_path))
    assert found.to_dict() == {
        "pointing_nouns": 0,
        "pointing_hit": None,
        "pointing_centre": None,
        "pointing_random": None,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": [{"id": 1}]},
        {"categories": []},
        {"images": [{"id": 7, "file_name": "0007.jpg"}]},
        {"images": [{"id": 7, "file_name": "0007.jpg", "width": 0, "height": 9}]},
        {"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
        {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]},
        {"annotations": [{"image_id": 7, "category_id": 1, "bbox": "here"}]},
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, changes: dict[str, Any]):
    with pytest.raises(DataError, match=r"instances\.json"):
        boxes(tmp_path, **changes)
