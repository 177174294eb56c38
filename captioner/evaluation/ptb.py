"""Penn Treebank tokenisation of captions, in pure Python."""

from __future__ import annotations

import re

__all__ = ["tokenize"]

_TOKEN = re.compile(r"[^\W_]+?(?=n't\b)|n't\b|[^\W_]+(?:-[^\W_]+)*|'(?:s|re|ve|ll|d|m)\b|[^\w\s.,:;!?'\"`-]")


def tokenize(caption: str) -> list[str]:
    """The lower-case tokens of a caption, without punctuation."""
    return _TOKEN.findall(caption.lower())
