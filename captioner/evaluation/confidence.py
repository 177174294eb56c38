"""Whether captions know when they are right: their confidences against what people said of the photos."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from captioner.caption import Caption
from captioner.content import content_words
from captioner.evaluation.correctness import said_by, share_right
from captioner.evaluation.reliability import Reliability, rank_correlation, reliability

__all__ = ["ConfidenceScores", "judge_confidence"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class ConfidenceScores:
    """How far the confidences of a set of captions can be believed; None where there is nothing to judge.

    Attributes:
        words: of content words, which are right if some reference says them.
        captions: of captions, which are right if all their content words are.
        rank_correlation: Spearman's, of a caption's confidence with the share of its content words that are
            right, -1…1.
    """

    words: Reliability | None
    captions: Reliability | None
    rank_correlation: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The figures by name, as JSON-ready data."""
        figures = {
            f"{kind}_{name}": None if found is None else getattr(found, name)
            for kind, found in (("word", self.words), ("caption", self.captions))
            for name in ("ece", "brier", "auroc")
        }
        return {**figures, "rank_correlation": self.rank_correlation}


def judge_confidence(
    references: Mapping[K, Sequence[str]], captions: Mapping[K, Caption]
) -> ConfidenceScores:
    """Compare the confidences of captions with what people said of the same photos.

    Args:
        references: for each photo, the captions that people wrote.
        captions: for the same photos; those without a content word are left out, as is what
            has no confidence.
    """
    words: list[tuple[float, bool]] = []
    whole: list[tuple[float, float]] = []
    for key, caption in captions.items():
        said, share = said_by(references[key]), share_right(caption.caption, references[key])
        for word in caption.words:
            content = content_words(word.text)
            if content and word.confidence is not None:
                words.append((word.confidence, said.issuperset(content)))
        if share is not None and caption.confidence is not None:
            whole.append((caption.confidence, share))
    confidences, shares = [stated for stated, _ in whole], [share for _, share in whole]
    return ConfidenceScores(
        words=reliability([stated for stated, _ in words], [right for _, right in words]),
        captions=reliability(confidences, [share == 1 for share in shares]),
        rank_correlation=rank_correlation(confidences, shares),
    )
