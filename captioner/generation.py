"""Region tokens in, token ids out: whole captions, or their tokens as soon as they are certain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from captioner.decoder import TextDecoder
from captioner.errors import OptionsError
from captioner.logits import DecodeRules
from captioner.options import DEFAULT_LENGTH_PENALTY, SearchOptions
from captioner.search import BeamSearch, Hypothesis, RowSearch, Search

__all__ = [
    "DEFAULT_LENGTH_PENALTY",
    "PATIENCE",
    "Decided",
    "DecodeRules",
    "Hypothesis",
    "SearchOptions",
    "check_positions",
    "generate",
    "start_search",
    "stream",
]


PATIENCE = 4
"""Steps of a search on a GPU between two looks at what is done, since each makes the GPU wait."""


@dataclass(frozen=True)
class Decided:
    """What a step of :func:`stream` settled for one image.

    Attributes:
        image: its index in the batch.
        token_ids: the next tokens of its best caption, which nothing can change any more.
        hypotheses: with its last tokens, all its captions, best first; empty before.
    """

    image: int
    token_ids: tuple[int, ...]
    hypotheses: tuple[Hypothesis, ...] = ()


def generate(
    decoder: TextDecoder, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
) -> list[list[Hypothesis]]:
    """Caption a batch of encoded images.

    An image's captions do not depend on the batch it is in.

    Args:
        decoder: in eval mode.
        region_tokens: ``(B, R, D)``.
        options: its texts are not read here; their token ids stand in ``rules``.
        rules: token ids.

    Returns:
        1 + alternatives captions of each image, best first, or fewer where fewer exist, but at least one.

    Raises:
        OptionsError: prompt and max_length together need more positions than the decoder has.
    """
    search = start_search(decoder, region_tokens, options, rules)
    patience = PATIENCE if region_tokens.is_cuda else 1
    while search.images:
        search.step()
        if search.length % patience == 0 or search.length == search.steps:
            search.settle(at_most=0.5)  # to go on with fewer images costs a copy of the caches
    return [search.results[image] for image in range(len(region_tokens))]


def stream(
    decoder: TextDecoder, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
) -> Iterator[Decided]:
    """:func:`generate`, telling after each step which tokens of an image's best caption are certain.

    They are once every caption that may yet become its best one has them: in a greedy search each token at
    once, in a beam search when all beams that matter agree. An image's pieces add up to the token ids of its
    first hypothesis. Arguments and errors are those of :func:`generate`.
    """
    return _pieces(start_search(decoder, region_tokens, options, rules))


def start_search(
    decoder: TextDecoder, region_tokens: Tensor, options: SearchOptions, rules: DecodeRules
) -> Search:
    """The search that the options ask for, before its first step; see :func:`generate`."""
    check_positions(options, rules, decoder.config.max_positions)
    kind = RowSearch if options.do_sample or options.num_beams == 1 else BeamSearch
    return kind(decoder, region_tokens, options, rules)


def check_positions(options: SearchOptions, rules: DecodeRules, max_positions: int) -> None:
    """Raise OptionsError where prompt and max_length together need more positions than a decoder has."""
    if len(rules.prompt_ids) + rules.steps(options) - 1 > max_positions:  # the last token is never fed back
        raise OptionsError(
            f"a prompt of {len(rules.prompt_ids)} tokens and max_length {options.max_length} exceed "
            f"this model's {max_positions} positions: lower max_length or shorten the prompt"
        )


def _pieces(search: Search) -> Iterator[Decided]:
    sent = dict.fromkeys(search.images, 0)
    while search.images:
        search.step()
        before = search.images
        search.settle(at_most=1.0)
        decided = dict(zip(search.images, search.decided(), strict=True))
        for image in before:
            hypotheses = tuple(search.results.get(image, ()))
            token_ids = hypotheses[0].token_ids if hypotheses else tuple(decided[image])
            if hypotheses or len(token_ids) > sent[image]:
                yield Decided(image, token_ids[sent[image] :], hypotheses)
                sent[image] = len(token_ids)
