"""What a validator finds wrong with a request, in words for people: the field, what came, what to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

__all__ = ["complaints", "shown"]

PHOTO_NAMES = {"file", "files", "image", "image[]", "images", "img", "photo", "photos", "picture", "pictures"}
"""What people call the field of a photo."""

SENTENCES = {
    "missing": "is missing: send it",
    "greater_than_equal": "must be {ge} or more, not {came}",
    "less_than_equal": "must be {le} or less, not {came}",
    "greater_than": "must be more than {gt}, not {came}",
    "finite_number": "must be a finite number, not {came}",
    "string_type": "must be a text, not {came}",
    "string_too_short": "must have {min_length} or more characters, not {came}",
    "string_too_long": "must have {max_length} or fewer characters, not {came}",
    "list_type": "must be a list, not {came}",
    "too_short": "must have {min_length} or more entries, not {actual_length}",
    "too_long": "must have {max_length} or fewer entries, not {actual_length}",
    "literal_error": "must be {expected}, not {came}",
    "union_tag_invalid": "has {discriminator} '{tag}': send one of {expected_tags}",
    "union_tag_not_found": "has no {discriminator}: send one",
    "json_invalid": "the body is not valid JSON ({error}): send a JSON object",
}
"""By pydantic's kind of error."""

KINDS = {
    "int": "must be a whole number, not {came}",
    "float": "must be a number, not {came}",
    "bool": "must be true or false, not {came}",
    "model": "must be an object, not {came}",
    "dict": "must be an object, not {came}",
}
"""The same by the beginning of its name."""


def complaints(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What is wrong with each field: ``where`` it is and the ``reason``, a phrase that goes on from there.

    Args:
        errors: as pydantic's ``ValidationError.errors()`` gives them.
    """
    return [{"where": _where(error["loc"]), "reason": _reason(error)} for error in errors]


def shown(value: Any) -> str:
    """What came, short enough for a sentence; never a whole photo."""
    if isinstance(value, str):
        text = repr(value[:20])
        return text if len(value) <= 20 else f"{text[:-1]}…' ({len(value)} characters)"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)[:40]


def _where(path: Sequence[str | int]) -> str:
    """``messages.0.image_url.url``. Of a part with kinds, pydantic names the kind beside the field."""
    parts = [str(part) for part, _ in groupby(path)]
    return ".".join(parts[1:] if parts and parts[0] in ("query", "path", "body") else parts)


def _reason(error: Mapping[str, Any]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        if str(error["loc"][-1]).lower() in PHOTO_NAMES:
            return "is no field here: photos are called `image` in a form, and `images` in JSON"
        return "is no field here: leave it out"
    if kind == "value_error":
        return str(context["error"])
    sentence = SENTENCES.get(kind) or KINDS.get(kind.partition("_")[0])
    if sentence is None:
        return str(error["msg"]).replace("Input should be", "must be").replace("Value should", "must")
    return sentence.format(**{**context, "came": shown(error.get("input"))})
