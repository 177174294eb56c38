"""tokenizer.json -> token ids -> words.

One class serves word-level, WordPiece and byte-pair vocabularies: which tokens make up a word is read off
the decoded text, not off a vocabulary's conventions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

__all__ = ["CaptionTokenizer", "TokenSpan", "TokenizerConfig", "train_word_tokenizer"]

PAD, BOS, EOS, UNK = range(4)
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


DANGLING = (
    "a", "an", "the", "this", "that", "these", "those", "his", "her", "their", "its", "another", "some",
    "and", "or", "but", "while", "as", "than", "of", "in", "on", "at", "to", "by", "with", "for", "from",
    "into", "onto", "near", "over", "under", "through", "behind", "beside", "between", "against", "around",
    "towards", "is", "are", "was", "be",
)  # fmt: skip
"""Words that no caption ends with, wherever it was cut."""


@dataclass(frozen=True, kw_only=True)
class WordClasses:
    """Token ids by the part they play in a sentence, for a vocabulary of whole words.

    Attributes:
        determiners: begin a noun phrase: "a", "the".
        modifiers: stand before the noun of such a phrase and are never its noun: "red", "parked".
        conjunctions: join two modifiers: "and".
        closing: cannot follow before the noun has come: "is", "in", "up".
        repeatable: may be said twice in a caption: all but content words.
    """

    determiners: tuple[int, ...]
    modifiers: tuple[int, ...]
    conjunctions: tuple[int, ...]
    closing: tuple[int, ...]
    repeatable: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The ids with a meaning of their own.

    Attributes:
        start_ids: what every caption starts with; a prompt follows it.
        eos_id: ends a caption.
        pad_id: fills rows up in a batch.
        unk_id: stands for a word outside the vocabulary; -1 where every text has tokens.
        never_ids: tokens that no caption may contain.
        never_last_ids: tokens that no caption may end with.
        classes: parts of speech, by which captions keep some rules of grammar; None where they are not known.
        counted_start: how many of start_ids count as generated, as those do that `transformers` forces.
        forced_end: the token that a caption ends with where its greatest length cuts it; None for any.
    """

    start_ids: tuple[int, ...] = (BOS,)
    eos_id: int = EOS
    pad_id: int = PAD
    unk_id: int = UNK
    never_ids: tuple[int, ...] = (PAD, BOS, UNK)
    never_last_ids: tuple[int, ...] = ()
    classes: WordClasses | None = None
    counted_start: int = 0
    forced_end: int | None = None

    @property
    def bad_words_ids(self) -> tuple[tuple[int, ...], ...]:
        """The sequences of tokens that are never generated."""
        return (
            *((token,) for token in self.never_ids),
            *((token, self.eos_id) for token in self.never_last_ids),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenizerConfig:
        """The inverse of :meth:`to_dict`."""
        classes = data.get("classes")
        return cls(**{**_tuples(data), "classes": WordClasses(**_tuples(classes)) if classes else None})


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


@dataclass(frozen=True)
class TokenSpan:
    """A word and the half-open range of the tokens it came from."""

    text: str
    start: int
    stop: int


class CaptionTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizerConfig) -> None:
        self._tokenizer = tokenizer
        self.config = config

    @classmethod
    def from_file(cls, path: Path, config: TokenizerConfig) -> CaptionTokenizer:
        """Read a ``tokenizer.json``. Raises Exception, as the tokenizers library does, if it is damaged."""
        return cls(Tokenizer.from_file(str(path)), config)

    def with_config(self, config: TokenizerConfig) -> CaptionTokenizer:
        """The same tokens with other meanings."""
        return CaptionTokenizer(self._tokenizer, config)

    def save(self, path: Path) -> None:
        """Write it in the format of ``tokenizer.json``."""
        self._tokenizer.save(str(path))

    def is_same(self, other: CaptionTokenizer) -> bool:
        """Whether the other one has the same tokens and rules."""
        same: bool = self._tokenizer.to_str() == other._tokenizer.to_str()
        return same and self.config == other.config

    @property
    def vocab_size(self) -> int:
        """Words and special tokens."""
        return self._tokenizer.get_vocab_size()

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return self._decode(token_ids).strip()

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def words(self, token_ids: Sequence[int]) -> list[TokenSpan]:
        """The words of a caption, each with the tokens that it was decoded from.

        A token belongs to the word in which the text up to it ends, a lone space to the word after it; tokens
        without text, such as the end token, belong to none.
        """
        ends = [len(self._decode(token_ids[: index + 1])) for index in range(len(token_ids))]
        has_text = [bool(self._decode([token])) for token in token_ids]
        spans, after = [], 0
        for match in re.finditer(r"\S+", self._decode(token_ids)):
            tokens = [i for i, end in enumerate(ends) if has_text[i] and after < end <= match.end()]
            if tokens:
                spans.append(TokenSpan(match.group(), tokens[0], tokens[-1] + 1))
            after = match.end()
        return spans


def train_word_tokenizer(
    captions: Iterable[str], *, min_count: int = 4, words: Collection[str] = ()
) -> CaptionTokenizer:
    """A word-level tokenizer over ``words`` and those that occur at least ``min_count`` times.

    Text is lower-cased and loses its punctuation, as the metrics of the field prescribe; clitics such as
    ``'s`` are tokens of their own.
    """
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(SPECIAL_TOKENS)}, "<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("’", "'"),
            normalizers.Replace(Regex(r"[^\p{L}\p{N}'-]+"), " "),
            normalizers.Replace(Regex(r"\s+'s\b"), "'s"),
            normalizers.Replace(Regex(r"(?<!\w)['-]+|['-]+(?!\w)"), " "),
        ]
    )
    clitics = pre_tokenizers.Split(Regex(r"(?<=\w)(?:'s|n't|'re|'ve|'ll|'d|'m)$"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), clitics])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    normalize, split = tokenizer.normalizer.normalize_str, tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(word for caption in captions for word, _ in split(normalize(caption)))
    kept = sorted(
        {word for word, count in counts.items() if count >= min_count}.union(words),
        key=lambda w: (-counts[w], w),
    )
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *kept])}
    tokenizer.model = models.WordLevel(vocabulary, "<unk>")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    never_last = tuple(vocabulary[word] for word in DANGLING if word in vocabulary)
    return CaptionTokenizer(tokenizer, TokenizerConfig(never_last_ids=never_last))
