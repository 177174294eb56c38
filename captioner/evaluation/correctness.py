"""What captions get right, word by word: is a word one that some person said of the photograph?

BLEU and its kin reward fluent sentences that tell of another photograph. These figures tell of the
photograph alone, in the manner of CHAIR (Rohrbach et al. 2018), with references instead of annotated objects.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from captioner.content import COLOURS, PEOPLE, content_words, words_of

__all__ = ["Correctness", "correctness", "said_by", "share_right"]

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Correctness:
    """What a set of captions gets right, in percent; None where there is nothing to count.

    Attributes:
        content_right: of the content words, those that some reference of their photo says, in the same form.
        colours_right: the same of the colour words among them.
        people_invented: of the photos with no person in any reference, those whose caption has one.
    """

    content_right: float | None
    colours_right: float | None
    people_invented: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The figures by name, as JSON-ready data."""
        return asdict(self)


def correctness(references: Mapping[K, Sequence[str]], captions: Mapping[K, str]) -> Correctness:
    """Count what the captions of photos get right.

    Args:
        references: for each photo, the captions that people wrote.
        captions: for the same photos, the caption to judge.
    """
    content, colours, invented = [], [], []
    for key, caption in captions.items():
        said, words = said_by(references[key]), content_words(caption)
        content += [word in said for word in words]
        colours += [word in said for word in words if word in COLOURS]
        if PEOPLE.isdisjoint(said):
            invented.append(not PEOPLE.isdisjoint(words))
    return Correctness(
        content_right=_percent(content), colours_right=_percent(colours), people_invented=_percent(invented)
    )


def said_by(references: Sequence[str]) -> frozenset[str]:
    """All words of the captions that people wrote about one photo."""
    return frozenset(word for text in references for word in words_of(text))


def share_right(caption: str, references: Sequence[str]) -> float | None:
    """The share of a caption's content words that some reference says; None if it has none."""
    said, words = said_by(references), content_words(caption)
    return sum(word in said for word in words) / len(words) if words else None


def _percent(found: Sequence[bool]) -> float | None:
    return 100 * sum(found) / len(found) if found else None
