"""The JSON that goes in and out, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from captioner import GenerationOptions

__all__ = [
    "AlternativeOut",
    "CaptionOptions",
    "CaptionOut",
    "CaptionsForm",
    "CaptionsOut",
    "CaptionsRequest",
    "ChoiceOptions",
    "Detail",
    "FailedOut",
    "Hedge",
    "ImageRef",
    "MinConfidence",
    "ModelOut",
    "ModelsOut",
    "ProblemOut",
    "StatusOut",
    "StreamForm",
    "StreamRequest",
    "TextOut",
    "as_url",
]

MAX_IMAGES = 64
"""Photos of one request."""

EXAMPLE_PNG = (  # 2 × 2 pixels, red
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg=="
)

BadWord = Annotated[str, Field(min_length=1, max_length=64)]

# What no other API has a field for, and each form takes all the same
MinConfidence = Annotated[
    float | None,
    Field(ge=0, le=1, description="Mark captions that are less likely to be right than this as uncertain."),
]
Hedge = Annotated[
    bool | None,
    Field(description="Shorten those captions to what is sure; without min_confidence, those below 0.5."),
]
Detail = Annotated[
    Literal["brief", "detailed", "full"] | None,
    Field(description="How much to tell, for a model that was trained for each of them."),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CaptionOptions(_Strict):
    """How to caption. Fields that are left out keep the model's own settings, which ``/v1/models`` lists."""

    num_beams: int | None = Field(None, ge=1, le=64, description="Beams of the search; 1 is greedy search.")
    max_length: int | None = Field(None, ge=1, le=1024, description="Maximum number of tokens.")
    min_length: int | None = Field(None, ge=0, le=1024, description="Minimum number of tokens.")
    length_penalty: float | None = Field(
        None,
        ge=-10,
        le=10,
        description="Exponent of the length in a beam's score; larger values favour long captions.",
    )
    repetition_penalty: float | None = Field(
        None, ge=0.1, le=10, description="Above 1, words that were used already become less likely."
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=16, description="Never repeat a sequence of this many words."
    )
    bad_words: Annotated[list[BadWord], Field(max_length=64)] | None = Field(
        None, description="Words never to use."
    )
    prompt: str | None = Field(None, max_length=300, description="Words that the caption begins with.")
    instruction: str | None = Field(
        None, max_length=4000, description="What to write about the photo, for a model that can be asked."
    )
    detail: Detail = None
    do_sample: bool | None = Field(None, description="Choose the words at random.")
    temperature: float | None = Field(
        None, ge=0.01, le=100, description="With do_sample: below 1 prefers likely words."
    )
    top_k: int | None = Field(
        None, ge=0, le=1_000_000, description="With do_sample: choose from the k likeliest words."
    )
    top_p: float | None = Field(
        None,
        ge=0.001,
        le=1,
        description="With do_sample: choose from the likeliest words that together have this probability.",
    )
    seed: int | None = Field(
        None, ge=0, le=2**63 - 1, description="With do_sample: the same seed gives the same captions."
    )
    alternatives: int | None = Field(
        None, ge=0, le=63, description="How many more captions to give, best first; num_beams rises with it."
    )
    attention: bool | None = Field(None, description="Add to each word where the model looked, and its box.")
    early_stopping: bool | None = Field(
        None, description="Stop as soon as there are as many captions as beams."
    )
    min_confidence: MinConfidence = None
    hedge: Hedge = None

    def to_options(self) -> GenerationOptions:
        """The library's options. Raises OptionsError if they contradict each other."""
        given: dict[str, Any] = self.model_dump(include=set(CaptionOptions.model_fields), exclude_none=True)
        if "bad_words" in given:
            given["bad_words"] = tuple(given["bad_words"])
        return GenerationOptions(**given)


class ChoiceOptions(CaptionOptions):
    """How to caption, and by which model."""

    model: str = Field("", max_length=1000, description="A name of `/v1/models`; left out, the first.")


class ImageRef(_Strict):
    """A photo in the request itself, or elsewhere."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["base64"]}, {"required": ["url"]}]},
    )
    base64: str = Field(
        "", description="The file's bytes, base64.", json_schema_extra={"contentEncoding": "base64"}
    )
    url: str = Field(
        "", description="An address, where the server allows its host; or a data: URI with the photo itself."
    )
    name: str = Field("", max_length=255, description="Comes back as the caption's `file`.")

    @model_validator(mode="after")
    def _one_of_both(self) -> ImageRef:
        given = self.model_fields_set & {"base64", "url"}
        if len(given) != 1:
            both = "both `base64` and `url`" if given else "neither `base64` nor `url`"
            raise ValueError(f"has {both}: send one of them")
        return self


def as_url(data: Any) -> Any:
    """A text in place of an object with a ``url``."""
    return {"url": data} if isinstance(data, str) else data


ImageOrText = Annotated[ImageRef, BeforeValidator(as_url, json_schema_input_type=ImageRef | str)]


class CaptionsRequest(ChoiceOptions):
    """Photos, and how to caption them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": [{"base64": EXAMPLE_PNG}], "attention": True}]}
    )
    images: list[ImageOrText] = Field(min_length=1, max_length=MAX_IMAGES)


class StreamRequest(CaptionsRequest):
    """One photo, and how to caption it."""

    images: list[ImageOrText] = Field(min_length=1, max_length=1)


class CaptionsForm(ChoiceOptions):
    """Photos as files of a form, and how to caption them."""

    image: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        min_length=1,
        max_length=MAX_IMAGES,
        description="JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF; RAW and JPEG XL if installed.",
    )


class StreamForm(ChoiceOptions):
    """One photo as a file of a form, and how to caption it."""

    image: Annotated[str, Field(json_schema_extra={"format": "binary"})]


class WordOut(BaseModel):
    """One word of a caption."""

    text: str
    logprob: float | None = Field(
        le=0, description="Natural log-probability; null if the model's server gives none."
    )
    confidence: float | None = Field(
        ge=0, le=1, description="Probability that some person who describes the photo says the word, or null."
    )
    attention: list[list[float]] | None = Field(
        None, description="Where the model looked, if asked for: rows from the top, sum 1."
    )
    box: tuple[int, int, int, int] | None = Field(
        None,
        description="The box around it: left, top, right, bottom in pixels of the upright photo.",
    )


class AlternativeOut(BaseModel):
    """Another caption of the same photo."""

    caption: str
    confidence: float | None = Field(ge=0, le=1)
    logprob: float | None = Field(le=0)


class CaptionOut(BaseModel):
    """The caption of one photo."""

    file: str | None
    model: str
    width: int = Field(description="Pixels of the upright photo.")
    height: int
    caption: str
    confidence: float | None = Field(
        ge=0,
        le=1,
        description="Probability that people who describe the photo say all its content words, or null.",
    )
    logprob: float | None = Field(le=0)
    calibrated: bool = Field(
        description="Whether confidences are such probabilities; else they are exp(mean token log-prob)."
    )
    words: list[WordOut]
    alternatives: list[AlternativeOut]
    uncertain: bool = Field(False, description="Whether the confidence is below `min_confidence`.")
    unhedged: AlternativeOut | None = Field(
        None, description="The whole caption, where `hedge` shortened it to what is sure."
    )
    warning: str | None = Field(None, description="What is missing of the photo: `incomplete: …`.")


class TextOut(BaseModel):
    """What a caption that is being streamed goes on with."""

    text: str


class FailedOut(BaseModel):
    """Why one photo has no caption."""

    file: str
    error: str = Field(description="What is wrong and what to do: the problem's `detail`.")
    type: str = Field(description="The problem's `type`.")
    status: int = Field(description="The HTTP status that a request with this photo alone gets.")


class CaptionsOut(BaseModel):
    """A caption for each photo, in order; with `partial`, an error in the place of each that has none."""

    model: str
    captions: list[CaptionOut | FailedOut]


class ModelOut(BaseModel):
    """A model that this server serves."""

    id: str
    alias_of: str | None = Field(description="The model's own name, if this is a further one.")
    object: str = "model"
    created: int
    owned_by: str
    loaded: bool = Field(description="If not, it is loaded when it is first asked for.")
    description: str = Field(description='"" until it was loaded once, and likewise the next.')
    parameters: int | None
    device: str | None
    dtype: str | None
    sends_photos_to: str | None = Field(
        description="The server that photos are sent to, if the model runs on one."
    )
    default_options: dict[str, Any]
    gives: dict[str, Literal[True] | None] = Field(
        description="What the model can do; null if it cannot, and `reasons` says why."
    )
    reasons: dict[str, str]
    max_beams: int
    max_upload_bytes: int
    max_pixels: int


class ModelsOut(BaseModel):
    """All models that this server serves."""

    object: str = "list"
    data: list[ModelOut]


class StatusOut(BaseModel):
    """That all is well."""

    status: str


class ProblemOut(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of problem: `urn:captioner:problem:…`.")
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do.")
    error: dict[str, str] = Field(
        description="The same, where OpenAI's and Hugging Face's clients look for it."
    )
