"""Calibration measures against known answers, and the diagram that shows them."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner import Caption, OptionsError
from captioner.caption import Word
from captioner.evaluation.confidence import judge_confidence
from captioner.evaluation.reliability import check_plot_path, plot_reliability, rank_correlation, reliability


def test_error_and_score_are_those_computed_by_hand():
    found = reliability([0.9, 0.9, 0.1, 0.3], [True, False, False, True])
    assert found is not None
    # bins of 1/15: {0.9, 0.9} says 0.9 and is right in 0.5; 0.1 is wrong; 0.3 is right
    assert found.ece == pytest.approx((2 * 0.4 + 0.1 + 0.7) / 4)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.01 + 0.49) / 4)
    assert found.auroc == pytest.approx(2.5 / 4)  # of right-wrong pairs: a tie counts as half
    assert [bin.count for bin in found.bins] == [1, 1, 2]
    assert found.bins[2].right == 0.5


def test_stated_probabilities_that_come_true_have_next_to_no_error():
    draw = random.Random(1)
    stated = [draw.random() for _ in range(20_000)]
    found = reliability(stated, [draw.random() < p for p in stated])
    assert found is not None
    assert found.ece < 0.02
    assert found.brier == pytest.approx(1 / 6, abs=0.01)
    assert found.auroc == pytest.approx(5 / 6, abs=0.02)


def test_certainty_belongs_to_the_last_bin():
    found = reliability([1.0, 0.0], [True, False])
    assert found is not None
    assert (found.ece, found.brier, found.auroc) == (0, 0, 1)


def test_what_cannot_be_judged_is_none():
    assert reliability([], []) is None
    all_right = reliability([0.3, 0.8], [True, True])
    assert all_right is not None
    assert all_right.auroc is None
    assert rank_correlation([1, 1], [0, 1]) is rank_correlation([], []) is None


def test_rank_correlation_looks_at_order_alone():
    assert rank_correlation([0.1, 0.2, 0.9], [1, 5, 6]) == pytest.approx(1)
    assert rank_correlation([0.1, 0.2, 0.9], [3, 2, -8]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)


def caption(text: str, confidence: float, words: list[float]) -> Caption:
    return Caption(
        file=None,
        model="m",
        width=1,
        height=1,
        caption=text,
        confidence=confidence,
        logprob=-1.0,
        words=tuple(
            Word(text=word, logprob=-1.0, confidence=sure)
            for word, sure in zip(text.split(), words, strict=True)
        ),
    )


def test_captions_are_right_as_their_content_words_are():
    references = {1: ["A dog runs on grass"], 2: ["Two cats."], 3: ["a bus"]}
    captions = {
        1: caption("a dog runs", 0.6, [0.1, 0.9, 0.8]),
        2: caption("a dog and cats", 0.4, [0.1, 0.3, 0.1, 0.7]),
        3: caption("it is", 0.9, [0.5, 0.5]),  # says nothing, so it is neither right nor wrong
    }
    found = judge_confidence(references, captions)
    assert found.words == reliability([0.9, 0.8, 0.3, 0.7], [True, True, False, True])
    assert found.captions == reliability([0.6, 0.4], [True, False])
    assert found.rank_correlation == pytest.approx(1)
    assert set(found.to_dict()) == {
        *("word_ece", "word_brier", "word_auroc", "caption_ece", "caption_brier", "caption_auroc"),
        "rank_correlation",
    }


def test_the_diagram_is_a_picture_with_a_panel_for_each_curve(tmp_path: Path):
    curve = reliability([0.2, 0.7, 0.9], [False, True, True])
    assert curve is not None
    widths = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        plot_reliability(path, {f"curve {number}": curve for number in range(count)})
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("L").getcolors(256) or ()) > 10
            widths.append(picture.width)
    assert widths[1] == 2 * widths[0]


def test_a_diagram_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    check_plot_path(tmp_path / "plot.PNG")
    with pytest.raises(OptionsError, match=r"is a \.png file"):
        check_plot_path(tmp_path / "plot.svg")
    with pytest.raises(OptionsError, match="make it first"):
        check_plot_path(tmp_path / "nowhere" / "plot.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OptionsError, match="is a folder"):
        check_plot_path(tmp_path / "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    with pytest.raises(OptionsError, match=r"pip install 'captioner\[evaluate\]'"):
        check_plot_path(tmp_path / "plot.png")
