"""Parts of speech of a vocabulary, learned from captions: which words need a noun after them.

A word is a modifier if hardly any of its uses after a word such as "the" is followed by the end or by a word
such as "is", for then its noun would be missing. So "red", "parked" and "tennis" are modifiers, "dog" is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from itertools import pairwise

from captioner.content import FUNCTION_WORDS, word_set
from captioner.tokenizer import CaptionTokenizer, WordClasses

__all__ = ["with_word_classes"]

DETERMINERS = word_set("a an the his her their its my your our another some two three four five several many")
CONJUNCTIONS = word_set("and or")
PARTICLES = word_set("up out off")
UNKNOWN = "?"
MOST_ALONE = 0.06  # of a modifier's uses after a determiner, those without a noun, which are writers' slips
MOST_NOUNS = 0.02  # of a closing word's uses, those right after a determiner, as in "the top"


def with_word_classes(tokenizer: CaptionTokenizer, captions: Iterable[str]) -> CaptionTokenizer:
    """The same tokenizer with word classes.

    Args:
        tokenizer: of whole words.
        captions: that people wrote; the more of them, the rarer the words that are known.
    """
    config = tokenizer.config
    words = {token: tokenizer.decode([token]) or UNKNOWN for token in range(tokenizer.vocab_size)}
    texts = [[words[token] for token in tokenizer.encode(caption)] for caption in captions]
    function = FUNCTION_WORDS & set(words.values())
    uses = Counter(word for text in texts for word in text)
    begun = Counter(word for text in texts for before, word in pairwise(text) if before in DETERMINERS)
    closing = {
        word for word in function - DETERMINERS - CONJUNCTIONS if begun[word] <= MOST_NOUNS * uses[word]
    }
    clitics = {word for word in words.values() if word.startswith("'") or word == "n't"}
    ends = closing | clitics | {""}
    alone = Counter(
        word
        for text in texts
        for before, word, after, then in windows(text)
        if before in DETERMINERS and (then if after in PARTICLES else after) in ends
    )
    modifiers = {word for word in begun if (alone[word] + 0.5) / (begun[word] + 1) <= MOST_ALONE}
    modifiers -= function | clitics | {UNKNOWN}
    special = {*config.start_ids, config.eos_id, config.pad_id, config.unk_id, *config.never_ids}

    def ids(chosen: Set[str]) -> tuple[int, ...]:
        return tuple(token for token, word in words.items() if word in chosen and token not in special)

    classes = WordClasses(
        determiners=ids(DETERMINERS),
        modifiers=ids(modifiers),
        conjunctions=ids(CONJUNCTIONS),
        closing=ids(closing),
        repeatable=tuple(sorted({*ids(function | clitics), *special} - {-1})),
    )
    return tokenizer.with_config(replace(config, classes=classes))


def windows(text: list[str]) -> Iterator[tuple[str, ...]]:
    """Each two words of a text with the two that follow, "" after its end."""
    padded = [*text, "", ""]
    return zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
