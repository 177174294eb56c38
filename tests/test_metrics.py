"""The metrics against what pycocoevalcap 1.2 gives: recorded, and live where that package is installed."""

from __future__ import annotations

import importlib
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from captioner.errors import DataError
from captioner.evaluation.metrics import CiderScorer, Scores, bleu, cider, rouge_l, score

REFERENCES = {
    "dog.jpg": ("A brown dog runs through the grass.", "The dog's running in a field!", "a dog running"),
    "café.jpg": ("Two people sit outside a café.", "A couple isn't inside the café, but outside it."),
    "surf.jpg": ("A surfer rides a big, blue wave.", "A man in a wet-suit is surfing on a wave"),
    "stop.jpg": ("A red stop sign.",),
    "fog.jpg": ("Fog.", "Nothing can be seen"),
    "boat.jpg": ("There are 1 1/2 boats in the picture", "Half a boat & a whole boat -- at sea"),
}
HYPOTHESES = {
    "dog.jpg": "a brown dog runs through the field",
    "café.jpg": "Two people sit outside the café",
    "surf.jpg": "a man surfing on a wave",
    "stop.jpg": "sign",
    "fog.jpg": "",
    "boat.jpg": "1 1/2 boats",
}

has_package = find_spec("pycocoevalcap") is not None
has_java = shutil.which("java") is not None
needs_package = pytest.mark.skipif(
    not has_package, reason="needs pycocoevalcap: pip install 'captioner[evaluate]'"
)
needs_java = pytest.mark.skipif(
    not (has_package and has_java), reason="needs java and pycocoevalcap: pip install 'captioner[evaluate]'"
)

Captions = dict[int, list[list[str]]]


def test_scores_of_plain_captions_are_those_recorded() -> None:
    expected = {
        "bleu_1": 64.74053920276151,
        "bleu_2": 59.09975617697645,
        "bleu_3": 52.580016906194224,
        "bleu_4": 46.574920276963475,
        "rouge_l": 52.88405841326041,
        "cider": 196.80337200456205,
        "meteor": None,
    }
    assert score(REFERENCES, HYPOTHESES, meteor=False).to_dict() == pytest.approx(expected, abs=1e-6)


def test_the_order_of_hypotheses_does_not_matter() -> None:
    backwards = dict(reversed(HYPOTHESES.items()))
    assert score(REFERENCES, backwards, meteor=False) == score(REFERENCES, HYPOTHESES, meteor=False)


@pytest.mark.slow
@needs_java
def test_meteor_is_that_recorded() -> None:
    assert score(REFERENCES, HYPOTHESES).meteor == pytest.approx(35.74247516952423, abs=1e-6)


def test_meteor_is_none_without_java(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(REFERENCES, HYPOTHESES).meteor is None


@needs_package
def test_meteor_is_none_where_java_fails(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score(REFERENCES, HYPOTHESES).meteor is None
    assert "METEOR is left out" in caplog.text


def random_captions(chance: random.Random) -> tuple[Captions, dict[int, list[str]]]:
    """Captions over few words, so that n-grams meet; some are empty, some repeat a reference."""
    words = [f"w{i}" for i in range(chance.choice([2, 5, 30]))] + ["é", "日本"]

    def caption(lengths: Sequence[int]) -> list[str]:
        return chance.choices(words, k=chance.choice(lengths))

    references = {
        key: [caption([1, 2, 3, 6, 11, 18]) for _ in range(chance.randint(1, 5))]
        for key in range(chance.choice([1, 2, 7, 25]))
    }
    hypotheses = {
        key: chance.choice([caption([0, 1, 2, 4, 9, 30]), chance.choice(captions)])
        for key, captions in references.items()
    }
    return references, hypotheses


def by_package(references: Captions, hypotheses: Mapping[int, list[str]]) -> tuple[list[float], list[float]]:
    """BLEU-1…4, ROUGE-L and CIDEr by pycocoevalcap, and its CIDEr of each image."""
    joined = {key: [" ".join(tokens) for tokens in captions] for key, captions in references.items()}
    judged = {key: [" ".join(tokens)] for key, tokens in hypotheses.items()}

    def metric(path: str, name: str) -> Any:
        return getattr(importlib.import_module(f"pycocoevalcap.{path}"), name)()

    bleus, _ = metric("bleu.bleu", "Bleu").compute_score(joined, judged, verbose=0)
    rouge, _ = metric("rouge.rouge", "Rouge").compute_score(joined, judged)
    mean, each = metric("cider.cider", "Cider").compute_score(joined, judged)
    return [*bleus, rouge, mean], list(each)


@needs_package
def test_random_captions_score_as_by_the_package() -> None:
    chance = random.Random(0)
    for _ in range(300):
        references, hypotheses = random_captions(chance)
        whole, each = by_package(references, hypotheses)
        ours = [*bleu(references, hypotheses), rouge_l(references, hypotheses), cider(references, hypotheses)]
        assert ours == pytest.approx(whole, abs=1e-6)
        scorer = CiderScorer(references)
        singly = [scorer.score(key, hypothesis) for key, hypothesis in hypotheses.items()]
        assert singly == pytest.approx(each, abs=1e-6)


def test_identical_captions_score_full_marks() -> None:
    captions = {
        1: "a man rides a red horse",
        2: "two dogs run on wet sand",
        3: "snow falls over the old town",
    }
    found = score({key: [text] for key, text in captions.items()}, captions, meteor=False)
    full = Scores(bleu_1=100, bleu_2=100, bleu_3=100, bleu_4=100, rouge_l=100, cider=1000)
    assert found.to_dict() == pytest.approx(full.to_dict(), abs=1e-6)


def test_empty_hypotheses_score_nothing() -> None:
    references = {1: ["a dog"], 2: ["a cat"]}
    found = score(references, {1: "", 2: "."}, meteor=False)
    none = Scores(bleu_1=0, bleu_2=0, bleu_3=0, bleu_4=0, rouge_l=0, cider=0)
    assert found.to_dict() == pytest.approx(none.to_dict(), abs=1e-6)


def test_cider_by_hand() -> None:
    scorer = CiderScorer({"a": [["red", "dog"], ["red", "cat"]], "b": [["one", "bird"]]})
    # "red" is in one image of two, though in two captions. Half of each unigram vector agrees, and no bigram
    # does: a cosine of 1/2 over four n-gram lengths, times ten.
    assert scorer.score("a", ["red", "fox"]) == pytest.approx(10 * 0.5 / 4)
    # A caption of three words more: exp(-3² / (2 · 6²)), and one weight of five in its vector.
    longer = ["red", "p", "q", "r", "s"]
    cosine = 1 / (5**0.5 * 2**0.5)
    assert scorer.score("a", longer) == pytest.approx(10 * cosine / 4 * 2.718281828459045 ** (-9 / 72))
    assert scorer.score("b", ["red", "dog"]) == 0
    assert scorer.score("b", []) == 0


def test_a_word_that_every_image_has_weighs_nothing() -> None:
    scorer = CiderScorer({1: [["a", "dog"]], 2: [["a", "cat"]]})
    assert scorer.score(1, ["a"]) == 0
    assert CiderScorer({1: [["a", "dog"]]}).score(1, ["a", "dog"]) == 0


def test_agreement_with_a_mixture_is_the_mean_score_against_its_images() -> None:
    references = {
        "a": [["red", "dog", "runs"], ["red", "cat", "sleeps"]],
        "b": [["one", "bird", "sleeps"]],
        "c": [["red", "bird", "runs"]],
    }
    scorer = CiderScorer(references)
    caption = ["red", "bird", "sleeps"]  # as long as all of them, no word twice: nothing is clipped
    expected = 0.25 * scorer.score("a", caption) + 0.75 * scorer.score("b", caption)
    assert expected > 1
    a, b = scorer.mean_vector("a"), scorer.mean_vector("b")

    def mixture(ngram: tuple[str, ...]) -> float:
        return 0.25 * a.get(ngram, 0.0) + 0.75 * b.get(ngram, 0.0)

    assert scorer.agreement(mixture, caption) == pytest.approx(expected)
    assert scorer.agreement(mixture, []) == 0


def test_an_unknown_image_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        CiderScorer({1: [["a"]]}).score(2, ["a"])


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({}, {}, "there are no reference captions"),
        ({1: []}, {1: "a"}, "image 1 has no reference captions"),
        ({1: ["a"], 2: ["b"]}, {1: "a"}, "must be of the same images: 2"),
        ({1: ["a"]}, {1: "a", "x": "b"}, "must be of the same images: 'x'"),
    ],
)
def test_what_cannot_be_scored_is_said(
    references: dict[Any, list[str]], hypotheses: dict[Any, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(references, hypotheses)


def test_cider_is_fast_enough_for_self_critical_training() -> None:
    """160 samples of 11 words against five references in well under 100 ms of one core."""
    chance = random.Random(0)
    words = [f"w{int(chance.paretovariate(0.5))}" for _ in range(5000)]
    references = {key: [chance.choices(words, k=11) for _ in range(5)] for key in range(400)}
    samples = [(key % 400, chance.choices(words, k=11)) for key in range(160)]
    scorer = CiderScorer(references)

    def seconds() -> float:
        start = time.process_time()
        for key, sample in samples:
            scorer.score(key, sample)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.1
