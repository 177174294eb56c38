"""The JSON of Ollama's API, as far as a photo needs it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.schemas import EXAMPLE_PNG, Detail, Hedge, MinConfidence

__all__ = [
    "OllamaAnswer",
    "OllamaChat",
    "OllamaFormat",
    "OllamaGenerate",
    "OllamaModels",
    "OllamaOptions",
    "OllamaRequest",
    "OllamaShow",
]


OllamaFormat = Literal["json", ""] | dict[str, Any] | None
"""In which form to answer: a JSON schema, any JSON, or a text."""


class OllamaOptions(BaseModel):
    """How to caption. Ollama's other options are taken and have no effect."""

    num_predict: int | None = Field(None, description="Tokens at most; below 1, as many as suit the model.")
    temperature: float | None = Field(
        None, ge=0, description="Above 0, words are drawn at random; left out, as suits the model."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="From the likeliest words of this probability.")
    seed: int | None = Field(None, description="Draw the same again.")
    stop: list[str] | None = Field(None, max_length=16, description="A caption ends before any of these.")
    min_confidence: MinConfidence = None
    hedge: Hedge = None
    detail: Detail = None


class OllamaRequest(BaseModel):
    """What both kinds of request have. Ollama's other fields are taken and have no effect."""

    model: str = Field(description="A name of `/api/tags`, or `default`.")
    stream: bool | None = Field(None, description="Answer in pieces, a line each; true where it is left out.")
    options: OllamaOptions | None = None
    format: OllamaFormat = Field(
        None,
        description="JSON of a schema: any from a model that is held to it, one text from all others.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_followed(cls, data: Any) -> Any:
        if isinstance(data, dict):
            asked = {name for name in ("tools", "suffix") if data.get(name)}
            if asked:
                names = ", ".join(sorted(asked))
                raise ValueError(f"a captioning model cannot follow {names}: leave it out")
        return data


class OllamaGenerate(OllamaRequest):
    """A photo, and what to write about it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "default", "images": [EXAMPLE_PNG], "stream": False}]}
    )

    images: list[str] | None = Field(None, description="Base64; the last one is captioned.")
    prompt: str = Field("", description="Read by models that follow instructions.")


class OllamaMessage(BaseModel):
    """A message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    images: list[str] | None = Field(None, description="Base64.")


class OllamaChat(OllamaRequest):
    """A chat with a photo in it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "default",
                    "messages": [{"role": "user", "content": "What is it?", "images": [EXAMPLE_PNG]}],
                    "stream": False,
                }
            ]
        }
    )

    messages: list[OllamaMessage]


class OllamaShow(BaseModel):
    """Which model to show."""

    model: str = ""
    name: str = Field("", description="An older name of the same.")


class OllamaAnswer(BaseModel):
    """A caption, or a piece of it; the last piece is done and has no text."""

    model_config = ConfigDict(extra="allow")

    model: str
    created_at: str
    done: bool
    done_reason: str | None = None
    response: str | None = None
    message: dict[str, Any] | None = None
    eval_count: int | None = Field(None, description="Tokens of the caption.")


class OllamaModels(BaseModel):
    """The names of the models that this server has."""

    models: list[dict[str, Any]]
