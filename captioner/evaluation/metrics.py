"""BLEU, ROUGE-L, CIDEr and METEOR of captions, equal to those of ``pycocoevalcap``.

:func:`score` tokenises plain captions and gives all of them. :func:`bleu`, :func:`rouge_l` and :func:`cider`
take tokenised captions. :class:`CiderScorer` judges one caption at a time against references that were
prepared once, which is what self-critical training needs.
"""

from __future__ import annotations

import logging
import math
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from captioner.errors import DataError
from captioner.evaluation.ptb import tokenize

__all__ = ["CiderScorer", "Scores", "bleu", "cider", "rouge_l", "score"]

K = TypeVar("K", bound=Hashable)
Tokens = Sequence[str]
NGram = tuple[str, ...]

_MAX_N = 4
_CIDER_SIGMA = 6.0
_ROUGE_BETA = 1.2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of a set of captions, all times 100; ``meteor`` is None where it was not measured."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float
    meteor: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The metrics by name, as JSON-ready data."""
        return asdict(self)


def score(
    references: Mapping[K, Sequence[str]], hypotheses: Mapping[K, str], *, meteor: bool = True
) -> Scores:
    """All metrics of plain captions, tokenised as ``pycocoevalcap`` does it.

    Args:
        references: for each image, the captions that people wrote, at least one.
        hypotheses: for the same images, the caption to judge, which may be empty.
        meteor: measure METEOR too where Java and ``pycocoevalcap`` are found; it takes seconds to start.

    Raises:
        DataError: there are no images, an image has no references, or the images of the two differ.
    """
    reference_tokens = {key: [tokenize(text) for text in texts] for key, texts in references.items()}
    hypothesis_tokens = {key: tokenize(text) for key, text in hypotheses.items()}
    _check(reference_tokens, hypothesis_tokens)
    # A token can hold a no-break space ("1 1/2"): pycocoevalcap splits there for BLEU and CIDEr only.
    reference_words = {key: [_split(tokens) for tokens in texts] for key, texts in reference_tokens.items()}
    hypothesis_words = {key: _split(tokens) for key, tokens in hypothesis_tokens.items()}
    bleus = bleu(reference_words, hypothesis_words)
    meteor_score = _meteor(reference_tokens, hypothesis_tokens) if meteor else None
    return Scores(
        bleu_1=100 * bleus[0],
        bleu_2=100 * bleus[1],
        bleu_3=100 * bleus[2],
        bleu_4=100 * bleus[3],
        rouge_l=100 * rouge_l(reference_tokens, hypothesis_tokens),
        cider=100 * cider(reference_words, hypothesis_words),
        meteor=None if meteor_score is None else 100 * meteor_score,
    )


def bleu(references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens]) -> tuple[float, ...]:
    """BLEU-1 to BLEU-4 of the whole set, in 0…1, with the closest reference length (Papineni et al. 2002)."""
    _check(references, hypotheses)
    length = closest_length = 0
    matches, totals = [0] * _MAX_N, [0] * _MAX_N
    for key, hypothesis in hypotheses.items():
        length += len(hypothesis)
        closest_length += min((len(r) for r in references[key]), key=lambda n: (abs(n - len(hypothesis)), n))
        limits: Counter[NGram] = Counter()
        for reference in references[key]:
            limits |= _ngram_counts(reference)
        for ngram, count in _ngram_counts(hypothesis).items():
            matches[len(ngram) - 1] += min(count, limits[ngram])
        for n in range(_MAX_N):
            totals[n] += max(0, len(hypothesis) - n)
    # pycocoevalcap's guards against division by zero, which show in the scores of tiny sets.
    ratio = (length + 1e-15) / (closest_length + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(_MAX_N):
        product *= (matches[n] + 1e-15) / (totals[n] + 1e-9)
        scores.append(penalty * product ** (1 / (n + 1)))
    return tuple(scores)


def rouge_l(references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens]) -> float:
    """The mean ROUGE-L, in 0…1: F-measure (beta 1.2) of the best precision and best recall (Lin 2004)."""
    _check(references, hypotheses)
    total = 0.0
    for key, hypothesis in hypotheses.items():
        # pycocoevalcap takes an empty caption for one empty word.
        words = hypothesis or [""]
        common = [(_common_length(words, r or [""]), len(r) or 1) for r in references[key]]
        precision = max(n for n, _ in common) / len(words)
        recall = max(n / length for n, length in common)
        if precision:
            total += (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)
    return total / len(hypotheses)


def cider(references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens]) -> float:
    """The mean CIDEr, in 0…10, with the document frequencies of these references."""
    _check(references, hypotheses)
    scorer = CiderScorer(references)
    return sum(scorer.score(key, hypothesis) for key, hypothesis in hypotheses.items()) / len(hypotheses)


@dataclass(frozen=True, slots=True)
class _Vector:
    """A caption as TF-IDF weights of its n-grams, their norm for each n, and its number of bigrams."""

    weights: Mapping[NGram, float]
    norms: tuple[float, ...]
    length: int


class CiderScorer(Generic[K]):
    """CIDEr of single captions, as ``pycocoevalcap``'s "Cider" (n = 4, sigma = 6), which others call CIDEr-D.

    From Vedantam et al. 2015, with clipped counts and a Gaussian penalty on the difference in length. An
    n-gram's document frequency is the number of images that have it in a reference.

    Args:
        references: for each image, its tokenised captions, at least one.
        others: captions of further images, which count for the document frequencies alone.

    Raises:
        DataError: there are no images, or an image has no references.
    """

    def __init__(
        self, references: Mapping[K, Sequence[Tokens]], *, others: Sequence[Sequence[Tokens]] = ()
    ) -> None:
        _check(references)
        frequencies: Counter[NGram] = Counter()
        for captions in (*references.values(), *others):
            frequencies.update({ngram for caption in captions for ngram in _ngram_counts(caption)})
        self._unseen_idf = math.log(len(references) + len(others))
        self._idf = {ngram: self._unseen_idf - math.log(count) for ngram, count in frequencies.items()}
        self._references = {key: [self._vector(r) for r in captions] for key, captions in references.items()}

    def score(self, key: K, hypothesis: Tokens) -> float:
        """The CIDEr, in 0…10, of a tokenised caption of image ``key``; KeyError for an unknown image."""
        references = self._references[key]
        vector = self._vector(hypothesis)
        total = 0.0
        for reference in references:
            products = [0.0] * _MAX_N
            for ngram, weight in vector.weights.items():
                reference_weight = reference.weights.get(ngram)
                if reference_weight is not None:
                    products[len(ngram) - 1] += min(weight, reference_weight) * reference_weight
            cosines = sum(
                product / (a * b)
                for product, a, b in zip(products, vector.norms, reference.norms, strict=True)
                if product
            )
            delta = vector.length - reference.length
            total += cosines * math.exp(-(delta**2) / (2 * _CIDER_SIGMA**2))
        return 10 * total / (_MAX_N * len(references))

    def mean_vector(self, key: K) -> dict[NGram, float]:
        """What an image's references say: the mean of their TF-IDF vectors, each n's part scaled to 1."""
        mean: defaultdict[NGram, float] = defaultdict(float)
        references = self._references[key]
        for reference in references:
            scales = [1 / len(references) / norm if norm else 0.0 for norm in reference.norms]
            for ngram, value in reference.weights.items():
                mean[ngram] += scales[len(ngram) - 1] * value
        return mean

    def agreement(self, expected: Callable[[NGram], float], hypothesis: Tokens) -> float:
        """The CIDEr, 0…10, of a caption against a mean vector, or a mixture of several images'.

        This is CIDEr as first defined: without clipping and without the penalty on length, neither of which a
        mean allows for.

        Args:
            expected: the vector, asked for the n-grams of the caption.
            hypothesis: the tokenised caption.
        """
        vector = self._vector(hypothesis)
        cosines = sum(
            value / vector.norms[len(ngram) - 1] * expected(ngram)
            for ngram, value in vector.weights.items()
            if value
        )
        return 10 * cosines / _MAX_N

    def _vector(self, tokens: Tokens) -> _Vector:
        counts = _ngram_counts(tokens)
        weights = {ngram: count * self._idf.get(ngram, self._unseen_idf) for ngram, count in counts.items()}
        squares = [0.0] * _MAX_N
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight * weight
        return _Vector(weights, tuple(map(math.sqrt, squares)), max(0, len(tokens) - 1))


def _ngram_counts(tokens: Tokens) -> Counter[NGram]:
    """How often each n-gram of one to four tokens occurs."""
    words = tuple(tokens)
    return Counter(words[i : i + n] for n in range(1, _MAX_N + 1) for i in range(len(words) - n + 1))


def _split(tokens: Tokens) -> list[str]:
    return " ".join(tokens).split()


def _common_length(a: Tokens, b: Tokens) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = row
        row = [0]
        for j, other in enumerate(b):
            row.append(previous[j] + 1 if word == other else max(row[j], previous[j + 1]))
    return row[-1]


def _meteor(references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens]) -> float | None:
    """METEOR 1.5, in 0…1 (Denkowski and Lavie 2014), by ``pycocoevalcap``'s jar; None where it cannot run.

    The package's own wrapper is not used: it waits for ever where Java ends too soon.
    """
    package = find_spec("pycocoevalcap")
    if shutil.which("java") is None or package is None or not package.submodule_search_locations:
        return None
    folder = Path(next(iter(package.submodule_search_locations))) / "meteor"
    jar = ["-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    try:
        with subprocess.Popen(
            ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", *jar],
            cwd=folder,
            stdin=pipe,
            stdout=pipe,
            stderr=null,
            encoding="utf-8",
        ) as java:
            return _ask_meteor(java, references, hypotheses)
    except (OSError, ValueError):  # Java ended: its pipe is closed, or gives an empty line for a number
        _logger.warning("METEOR is left out: Java could not run it; check that `java -Xmx2G -version` works")
        return None


def _ask_meteor(
    java: subprocess.Popen[str], references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens]
) -> float:
    """The score of the whole set: statistics line by line, then one question about all of them."""
    stdin, stdout = java.stdin, java.stdout
    assert stdin is not None
    assert stdout is not None

    def say(*parts: str) -> None:
        print(*parts, sep=" ||| ", file=stdin, flush=True)

    statistics = []
    for key, captions in references.items():
        say("SCORE", *(" ".join(tokens) for tokens in captions), " ".join(hypotheses[key]))
        statistics.append(stdout.readline().strip())
    say("EVAL", *statistics)
    lines = [stdout.readline() for _ in range(len(statistics) + 1)]  # each image's score, then the set's
    return float(lines[-1])


def _check(references: Mapping[K, Sequence[Tokens]], hypotheses: Mapping[K, Tokens] | None = None) -> None:
    if not references:
        raise DataError("there are no reference captions: give at least one image with its captions")
    bare = [key for key, captions in references.items() if not captions]
    if bare:
        raise DataError(f"image {bare[0]!r} has no reference captions ({len(bare)} such images)")
    if hypotheses is not None and hypotheses.keys() != references.keys():
        odd = list(hypotheses.keys() ^ references.keys())
        raise DataError(
            f"references and hypotheses must be of the same images: {odd[0]!r} is in one only (of {len(odd)})"
        )
