"""The JSON of OpenAI's Responses API, as far as a photo needs it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.schemas import EXAMPLE_PNG, Detail, Hedge, MinConfidence

__all__ = ["ResponseOut", "ResponsesRequest"]


class InputText(BaseModel):
    """A text, read by models that follow instructions."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(BaseModel):
    """A photo."""

    type: Literal["input_image"]
    image_url: str = Field(description="A data: URI; https where the server allows its host.")


class InputMessage(BaseModel):
    """A message of the input."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Annotated[InputText | InputImage, Field(discriminator="type")]]

    def images(self) -> list[str]:
        """The photos in it."""
        return [part.image_url for part in self.content if isinstance(part, InputImage)]

    def text(self) -> str:
        """The texts in it."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, InputText))


class TextFormat(BaseModel):
    """In which form to answer; its name and strictness have no effect."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def wanted(self) -> dict[str, Any] | None:
        """The schema of the answer; None for a text."""
        return None if self.type == "text" else self.schema_ or {"type": "object"}


class TextOptions(BaseModel):
    """How the text is to be."""

    format: TextFormat | None = Field(
        None, description="JSON of a schema: any from a model that is held to it, one text from all others."
    )


class ResponsesRequest(BaseModel):
    """A photo, and what to write about it. OpenAI's other fields are taken and have no effect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "default",
                    "input": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "input_text", "text": "What is in this photo?"},
                                {"type": "input_image", "image_url": f"data:image/png;base64,{EXAMPLE_PNG}"},
                            ],
                        }
                    ],
                }
            ]
        }
    )

    model: str = Field("", description="A name of `/v1/models`; left out, the first.")
    input: str | list[InputMessage] = Field(description="The last photo in it is captioned.")
    instructions: str | None = Field(None, description="Read where the input has no text.")
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, description="Tokens at most.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Above 0, words are drawn at random; left out, as suits the model."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="From the likeliest words of this probability.")
    metadata: dict[str, str] | None = None
    text: TextOptions | None = None
    min_confidence: MinConfidence = None
    hedge: Hedge = None
    detail: Detail = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_followed(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        asked = {
            name for name in ("tools", "previous_response_id", "conversation", "background") if data.get(name)
        }
        if asked:
            names = ", ".join(sorted(asked))
            raise ValueError(f"a captioning model cannot follow {names}: leave it out")
        return data

    def last_image(self) -> str | None:
        """The address of the last photo; None if there is none."""
        messages = [] if isinstance(self.input, str) else self.input
        return next((message.images()[-1] for message in messages[::-1] if message.images()), None)

    def last_text(self) -> str:
        """What the user said last."""
        if isinstance(self.input, str):
            return self.input
        return next((message.text() for message in self.input[::-1] if message.role == "user"), "")


class ResponseOut(BaseModel):
    """The response: its message is the caption."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "in_progress"]
    model: str
    output: list[dict[str, Any]]
