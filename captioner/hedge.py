"""What shorter phrases a caption holds, so that it can say less but be sure of it.

A phrase is the caption's beginning up to a place where it may end, or a noun phrase from its midst, without
the adjectives that are in doubt: "a woman", "a brick wall" and "a wall" of "a woman in front of a brick
wall". The rules look at function words, endings and a list of common adjectives. They pass over many a
phrase, but what they give is hardly ever ungrammatical.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from captioner.content import COLOURS, FUNCTION_WORDS, content_words, word_set, words_of

__all__ = ["Phrase", "phrases", "text_of"]

Phrase = tuple[tuple[int, str], ...]
"""The words of a phrase: where each stands in the caption, and how it is written."""

ARTICLES = {"a", "an", "the"}
NUMBERS = word_set("two three four five six seven eight nine ten several many various")
OPENERS = {"a", "an", "some", *NUMBERS}
"""Words with which a noun phrase from a caption's midst may begin: "the" and "his" would ask which."""

ADJECTIVES = {
    *COLOURS,
    *NUMBERS,
    *word_set(
        """
bald beautiful big black-and-white blurry brick bright busy clean clear cloudy colorful colourful
concrete cute dark different dirty dry empty fluffy full furry grassy green happy heavy high huge
large leather light little long metal multicolored narrow new nice old older open orange plastic
pretty rocky sandy shiny shirtless short small snowy striped sunny tall tan tiny wet white wide
wooden young younger
"""
    ),
}
INTENSIFIERS = {"very", "so", "really", "quite"}
"""They go with the adjective after them."""

PARTICLES = {"of", "up", "down", "off", "out", "over", "to"}
"""What stands before these often asks for what comes after: "a group of", "a close up"."""

ING_NOUNS = word_set(
    """
awning building ceiling clothing crossing dining evening king landing living morning painting parking railing
ring skiing sling spring string swing thing wedding wing
"""
)


def phrases(words: Sequence[str], *, doubtful: Collection[int]) -> list[Phrase]:
    """The shorter phrases of a caption that have none of its doubtful words, those that say most first.

    Of those that say as much, the one of fewer words is first: "a building", not "the front of a building".

    Args:
        words: of the caption, as they are written.
        doubtful: where those words stand that the phrases must do without.
    """
    plain = [" ".join(words_of(word)) for word in words]
    spans = {(0, end) for end in [*_ends(plain, 0), len(plain)]} if plain else set()
    for start in range(1, len(plain)):
        if plain[start] in OPENERS:
            end = _noun_phrase_end(plain, start)
            spans |= {(start, cut) for cut in _ends([*plain[:end], "and"], start)}
    found = (_without(words, plain, start, end, doubtful) for start, end in spans)
    kept = {phrase for phrase in found if phrase and len(phrase) < len(words)}
    return sorted(kept, key=lambda phrase: (-_said(phrase), len(phrase), phrase))


def _said(phrase: Phrase) -> int:
    """How many content words a phrase has."""
    return sum(bool(content_words(word)) for _, word in phrase)


def text_of(phrase: Phrase, caption: str) -> str:
    """A phrase as a caption in the manner of the whole one: its capital and its full stop."""
    text = " ".join(word for _, word in phrase).rstrip(".,;:!?")
    if caption[:1].isupper():
        text = text[:1].upper() + text[1:]
    return text + ("." if caption.endswith(".") else "")


def _ends(plain: Sequence[str], start: int) -> Iterator[int]:
    """Where the phrase that begins at ``start`` may end before the caption does."""
    in_subject = plain[start] in ("a", "an")  # so far without a preposition, a verb or the like
    for end in range(start + 2, len(plain)):
        last, after = plain[end - 1], plain[end]
        if last in FUNCTION_WORDS and last not in (*ARTICLES, "and"):
            in_subject = False
        if not _may_end(last):
            continue
        if after in FUNCTION_WORDS:
            is_cut = after not in PARTICLES and after not in ARTICLES
        else:
            is_verb = in_subject and after.endswith("s") and not after.endswith(("ss", "us", "is", "as"))
            takes_object = end + 1 < len(plain) and plain[end + 1] in ARTICLES
            is_cut = _is_participle(after) or is_verb or takes_object
        if is_cut:
            yield end


def _noun_phrase_end(plain: Sequence[str], start: int) -> int:
    """Before which word a noun phrase from the midst ends: what may belong to a verb before it stays away."""
    for index in range(start + 1, len(plain)):
        joins = plain[index] == "and" and plain[index - 1] in ADJECTIVES
        is_inside = plain[index] == "of" or (plain[index] in ARTICLES and plain[index - 1] == "of")
        if plain[index] in FUNCTION_WORDS and not joins and not is_inside:
            return index
    return len(plain)


def _may_end(word: str) -> bool:
    """Whether a phrase may end with this word: a noun, as far as one can tell, or a participle."""
    return bool(word) and word not in FUNCTION_WORDS and word not in ADJECTIVES


def _is_participle(word: str) -> bool:
    return word.endswith("ing") and word not in ING_NOUNS


def _without(
    words: Sequence[str], plain: Sequence[str], start: int, end: int, doubtful: Collection[int]
) -> Phrase:
    """A stretch of the caption without its doubtful adjectives; empty if other words in it are doubtful."""
    dropped: set[int] = set()
    for run in _adjective_runs(plain, start, end):
        if any(index in doubtful for index in run):
            dropped.update(run)
    if any(index in doubtful and index not in dropped for index in range(start, end)):
        return ()
    kept = [(index, words[index]) for index in range(start, end) if index not in dropped]
    return tuple(_with_articles(kept))


def _adjective_runs(plain: Sequence[str], start: int, end: int) -> Iterator[range]:
    """The adjectives that a noun can do without, those joined by "and" together."""
    index = start
    while index < end:
        first = index
        while index + 1 < end and plain[index] in INTENSIFIERS:
            index += 1
        if plain[index] not in ADJECTIVES:
            index += 1
            continue
        stop = index + 1
        while stop + 1 < end and plain[stop] == "and" and plain[stop + 1] in ADJECTIVES:
            stop += 2
        if stop < end and plain[stop] not in FUNCTION_WORDS:
            yield range(first, stop)
        index = stop


def _with_articles(kept: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """With "a" or "an" as the word after it asks for, where that is another one than before."""
    for (index, word), (following, after) in pairwise(kept):
        if following > index + 1 and word.lower() in ("a", "an"):
            sounds_like_vowel = after[:1].lower() in "aeiou" and not after.lower().startswith(
                ("uni", "eu", "one")
            )
            word = word[0] + ("n" if sounds_like_vowel else "")
        yield index, word
    yield from kept[-1:]
