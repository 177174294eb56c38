"""The JSON of OpenAI's chat completions and of Hugging Face's image-to-text, as far as a photo needs it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from service.schemas import (
    EXAMPLE_PNG,
    AlternativeOut,
    CaptionOptions,
    Detail,
    Hedge,
    MinConfidence,
    as_url,
)

__all__ = ["ChatCompletion", "ChatRequest", "GeneratedText", "InferenceRequest"]

UNSUPPORTED = {"tools", "functions", "audio", "logprobs"}
"""Fields whose answer a client would wait for in vain."""


class TextPart(BaseModel):
    """A text, read by models that follow instructions."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where a photo is."""

    url: str = Field(description="A data: URI or base64; https where the server allows its host.")


class ImagePart(BaseModel):
    """A photo."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(as_url, json_schema_input_type=ImageUrl | str)]


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _as_parts(data: Any) -> Any:
    return [{"type": "text", "text": data}] if isinstance(data, str) else data


def _as_list(data: Any) -> Any:
    return [data] if isinstance(data, str) else data


Contents = Annotated[
    list[ContentPart], BeforeValidator(_as_parts, json_schema_input_type=list[ContentPart] | str)
]
StopText = Annotated[str, Field(min_length=1)]
StopTexts = Annotated[
    list[StopText],
    BeforeValidator(
        _as_list, json_schema_input_type=Annotated[list[StopText], Field(max_length=4)] | StopText
    ),
    Field(max_length=4),
]


class ChatMessage(BaseModel):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Contents | None = None

    def image_urls(self) -> list[str]:
        """The photos in it."""
        return [part.image_url.url for part in self.content or () if isinstance(part, ImagePart)]

    def text(self) -> str:
        """The texts in it."""
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))


class StreamOptions(BaseModel):
    """What a stream has besides the text."""

    include_usage: bool = False


class NamedSchema(BaseModel):
    """A JSON schema; its name and strictness have no effect."""

    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(BaseModel):
    """In which form to answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None

    def wanted(self) -> dict[str, Any] | None:
        """The schema of the answer; None for a text."""
        if self.type == "text":
            return None
        named = self.json_schema if self.type == "json_schema" else None
        return (named and named.schema_) or {"type": "object"}


class ChatRequest(BaseModel):
    """A chat with a photo in it.

    OpenAI's other fields are taken and have no effect, unless they ask for tools, audio or log-probs.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "default",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "What is in this photo?"},
                                {
                                    "type": "image_url",
                                    "image_url": {"url": f"data:image/png;base64,{EXAMPLE_PNG}"},
                                },
                            ],
                        }
                    ],
                }
            ]
        }
    )

    model: str = Field("", description="A name of `/v1/models`; left out, the first.")
    messages: list[ChatMessage] = Field(min_length=1, description="The last photo in them is captioned.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(
        None, ge=1, le=64, description="How many captions to give, best first; 1 for a stream."
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="Maximum number of tokens.")
    max_tokens: int | None = Field(None, ge=1, description="An older name of max_completion_tokens.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Above 0, words are chosen at random; default: the model's own setting."
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="Choose from the likeliest words that together have this probability."
    )
    seed: int | None = Field(None, description="The same seed gives the same captions.")
    stop: StopTexts | None = Field(None, description="The caption ends before any of these texts.")
    response_format: ResponseFormat | None = Field(
        None,
        description="JSON of a schema: any from a model that is held to it, one text from all others.",
    )
    min_confidence: MinConfidence = None
    hedge: Hedge = None
    detail: Detail = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_followed(cls, data: Any) -> Any:
        if isinstance(data, dict):
            asked = {name for name in UNSUPPORTED if data.get(name)}
            if asked:
                raise ValueError(f"a captioning model cannot follow {', '.join(sorted(asked))}: leave it out")
        return data

    def last_text(self) -> str:
        """What the user said last."""
        return next((message.text() for message in self.messages[::-1] if message.role == "user"), "")

    @model_validator(mode="after")
    def _one_stream(self) -> ChatRequest:
        if self.stream and (self.n or 1) > 1:
            raise ValueError("a stream has one caption: leave out n or stream")
        return self


class AnswerOut(BaseModel):
    """The assistant's answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChoiceOut(BaseModel):
    """One caption."""

    index: int
    message: AnswerOut
    logprobs: None
    finish_reason: Literal["stop", "length"]
    confidence: float | None = Field(None, description="With `min_confidence` or `hedge`, as are the next.")
    calibrated: bool | None = None
    uncertain: bool | None = None
    unhedged: AlternativeOut | None = Field(None, description="The whole caption, if it was shortened.")


class UsageOut(BaseModel):
    """Tokens of the captions; a photo has none."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """Captions as an assistant's answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChoiceOut]
    usage: UsageOut


class InferenceParameters(CaptionOptions):
    """How to caption; Hugging Face's name for `max_length` works too."""

    max_new_tokens: int | None = Field(None, ge=1, le=1024, description="Maximum number of tokens.")


class InferenceRequest(BaseModel):
    """A photo, and how to caption it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"inputs": EXAMPLE_PNG}]})

    inputs: str = Field(
        description="The file's bytes, base64.", json_schema_extra={"contentEncoding": "base64"}
    )
    parameters: InferenceParameters | None = None

    def options(self) -> CaptionOptions:
        """The parameters under our names."""
        given = self.parameters.model_dump(exclude_none=True) if self.parameters else {}
        if limit := given.pop("max_new_tokens", None):
            given.setdefault("max_length", limit)
        return CaptionOptions(**given)


class GeneratedText(BaseModel):
    """A caption."""

    generated_text: str
