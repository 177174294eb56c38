"""What a client of another API wants, in our terms, and how its caption is put: shared by all those APIs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from captioner import Alternative, Caption, Captioner, SearchOptions, StreamEvent
from service.errors import Problem
from service.inputs import Service
from service.models import Model
from service.schemas import CaptionOptions, Detail, Hedge, MinConfidence

__all__ = ["Reply", "certain_length"]

LONGEST = 1024
"""Tokens of an answer of a model that follows instructions, if it is to be so long."""

DESCRIBING = {"caption", "imagecaption", "alt", "alttext", "description", "imagedescription", "text"}
"""Names of a property that a caption can fill, in small letters and without signs between them."""

ABOUT_A_TEXT = {"type", "title", "description", "default", "examples"}
ABOUT_AN_OBJECT = {
    "type",
    "title",
    "description",
    "properties",
    "required",
    "additionalProperties",
    "$schema",
}
"""Keywords of a schema that leave it a text, or an object with these properties."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How a client wants its caption.

    Attributes:
        model: that is asked.
        text: what it says of its photo, for models that follow instructions.
        limit: tokens at most; None for what suits the model.
        samples: whether to draw words at random.
        temperature: how boldly; None for 1.
        top_p: from the likeliest words of this probability.
        seed: any whole number.
        alternatives: how many more captions.
        stop: texts before which the caption ends.
        schema: the JSON schema of the answer; None for a plain text.
        min_confidence: see :class:`~captioner.GenerationOptions`.
        hedge: likewise.
        detail: likewise.
    """

    model: Model
    text: str
    limit: int | None
    samples: bool
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    alternatives: int = 0
    stop: Sequence[str] = ()
    schema: dict[str, Any] | None = None
    min_confidence: MinConfidence = None
    hedge: Hedge = None
    detail: Detail = None

    def options(self, service: Service, captioner: Captioner) -> SearchOptions:
        """How the model is to search.

        Raises:
            Problem: status 400, the model cannot answer in the form that is wanted.
            OptionsError, pydantic.ValidationError: the options do not suit it, or are not valid.
        """
        longest, can_be_asked = captioner.default_options.max_length, not captioner.lacks.instructions
        schema = "" if self.schema is None else self._fit(self.schema, captioner)
        usual = LONGEST if schema else longest
        given: dict[str, Any] = {
            "max_length": min(self.limit or usual, LONGEST if can_be_asked else longest),
            "alternatives": self.alternatives,
            "min_confidence": self.min_confidence,
            "hedge": self.hedge,
            "detail": self.detail,
        }
        if can_be_asked and self.text.strip():
            given["instruction"] = self.text.strip()
        if self.samples:
            temperature = 1.0 if self.temperature is None else self.temperature
            given |= {"do_sample": True, "temperature": min(100.0, max(0.01, temperature))}
            if self.top_p not in (None, 1):  # clients send the default by habit
                given["top_p"] = max(0.001, self.top_p)
            given["seed"] = None if self.seed is None else self.seed % 2**63
        return service.options(CaptionOptions(**given), captioner, json_schema=schema)

    def whole(self, caption: Caption | Alternative) -> str:
        """A caption as the answer's text."""
        text, key = caption.caption[: certain_length(caption.caption, self.stop, ended=True)], self._key
        return json.dumps({key: text}, ensure_ascii=False) if key else text

    async def pieces(self, events: AsyncGenerator[StreamEvent]) -> AsyncGenerator[tuple[str, Caption | None]]:
        """The same text in pieces, none of them empty, and at last the caption with an empty one.

        Closes the events.
        """
        key, text, sent = self._key, "", 0
        begin, end = json.dumps({key: "\n"}, ensure_ascii=False).split("\\n") if key else ("", "")
        async with contextlib.aclosing(events):
            if begin:
                yield begin, None
            async for event in events:
                text += event.text
                certain = certain_length(text, self.stop, ended=event.caption is not None)
                if certain > sent:
                    piece, sent = text[sent:certain], certain
                    yield json.dumps(piece, ensure_ascii=False)[1:-1] if key else piece, None
                if event.caption:
                    if end:
                        yield end, None
                    yield "", event.caption

    def was_cut(self, caption: Caption | Alternative) -> bool:
        """Whether the limit of tokens cut the text off."""
        return caption.finished is False and not any(each in caption.caption for each in self.stop)

    def doubt(self, caption: Caption) -> dict[str, Any]:
        """What those APIs have no field for, and who sets a least confidence waits for."""
        if not self.min_confidence and not self.hedge:
            return {}
        found = caption.to_dict()
        wanted = ("confidence", "calibrated", "uncertain", "unhedged")
        return {"uncertain": False, **{name: found[name] for name in wanted if name in found}}

    @property
    def _key(self) -> str:
        """The property of the schema that a caption fills; "" where the caption is the whole answer."""
        assert self.model.about is not None, "the model has been loaded to caption"
        lacks = self.model.about.lacks
        if self.schema is None or not lacks["schemas"] or not lacks["instructions"]:
            return ""
        return _caption_key(self.schema)

    def _fit(self, schema: dict[str, Any], captioner: Captioner) -> str:
        """The schema for a model that follows it; "" where a caption will fill it."""
        if not captioner.lacks.schemas:
            return json.dumps(schema, ensure_ascii=False)
        if not self._key:
            detail = f"{captioner.name} cannot answer in this JSON, since {captioner.lacks.schemas}"
            if captioner.lacks.instructions:
                detail += (
                    "; it can fill an object whose one required text is called caption, alt or description"
                )
            raise Problem(400, "json-schema", "Not the form of a caption", detail)
        return ""


def _caption_key(schema: dict[str, Any]) -> str:
    """The property of an object that a caption fills, as all that a schema requires; "" if there is none."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or schema.get("type") != "object" or set(schema) - ABOUT_AN_OBJECT:
        return ""
    required = schema.get("required", [])
    for name, each in properties.items():
        is_text = isinstance(each, dict) and each.get("type") == "string" and not set(each) - ABOUT_A_TEXT
        fits = re.sub(r"[\W_]", "", name.lower()) in DESCRIBING
        if is_text and fits and required in ([], [name]):
            return str(name)
    return ""


def certain_length(text: str, stop: Sequence[str], *, ended: bool) -> int:
    """How many characters of a text come before the first of the texts to stop at that is complete.

    While it has not ended, its last characters may be the beginning of one.
    """
    ends = [(place + len(each), place) for each in stop if (place := text.find(each)) >= 0]
    if ends:
        return min(ends)[1]
    begun = [length for each in stop for length in range(1, len(each)) if text.endswith(each[:length])]
    return len(text) - max(begun, default=0) * (not ended)
