"""What goes to a model's server and what comes back: OpenAI's chat completions and Ollama's chat."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from captioner.errors import RemoteError
from captioner.options import SearchOptions
from captioner.runners.base import WrittenCaption
from captioner.runners.http import RefusedError
from captioner.tokenizer import TokenSpan

__all__ = [
    "Answer",
    "OllamaProtocol",
    "OpenAIProtocol",
    "Question",
    "ServerProtocol",
    "answer_text",
    "written_answer",
]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a server is asked.

    Attributes:
        model: the server's name for it.
        jpeg: the photo.
        instruction: what to write about it.
        options: how to search.
        number: counts the captions that are asked for of one photo, from 0.
        stream: whether to answer piece by piece.
    """

    model: str
    jpeg: bytes
    instruction: str
    options: SearchOptions
    number: int
    stream: bool

    @property
    def seed(self) -> int | None:
        """Another one for each caption of the photo."""
        return None if self.options.seed is None else (self.options.seed + self.number) % 2**31


@dataclass(frozen=True)
class Answer:
    """A server's answer, or a piece of one.

    Attributes:
        text: as it came.
        tokens: each token's bytes and natural log-prob; None where the server tells none.
        ended: whether it is the last piece.
        finished: whether the model ended the text, False where the limit of tokens cut it off; None in a
            piece, or from a server, that does not say.
    """

    text: str
    tokens: tuple[tuple[bytes, float], ...] | None = None
    ended: bool = False
    finished: bool | None = None


class ServerProtocol(Protocol):
    """The form of one kind of server's requests and answers."""

    path: str

    def body(self, question: Question) -> dict[str, Any]:
        """The request."""

    def read(self, data: dict[str, Any]) -> Answer:
        """A whole answer. Raises RemoteError where it is none."""

    def read_line(self, line: str) -> Answer | None:
        """A line of a stream; None where it holds no text. Raises RemoteError likewise."""


class OpenAIProtocol:
    """``/chat/completions``, as OpenAI, vLLM, SGLang, LM Studio and llama.cpp have it."""

    path = "/chat/completions"

    def body(self, question: Question) -> dict[str, Any]:
        """What only some servers know is in it only where it was asked for."""
        options = question.options
        url = f"data:image/jpeg;base64,{base64.b64encode(question.jpeg).decode()}"
        photo = {"type": "image_url", "image_url": {"url": url}}
        content = [photo, {"type": "text", "text": question.instruction}]
        body: dict[str, Any] = {
            "model": question.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": options.max_length,
            "temperature": options.temperature if options.do_sample else 0,
            "logprobs": True,
        }
        if options.json_schema:
            body["response_format"] = _response_format(json.loads(options.json_schema))
        if options.do_sample and options.top_p < 1:
            body["top_p"] = options.top_p
        if options.do_sample and options.top_k:
            body["top_k"] = options.top_k
        if options.stop:
            body["stop"] = list(options.stop)
        if question.seed is not None:
            body["seed"] = question.seed
        if options.repetition_penalty != 1:
            body["repetition_penalty"] = options.repetition_penalty
        return body | ({"stream": True} if question.stream else {})

    def read(self, data: dict[str, Any]) -> Answer:
        """The first choice."""
        try:
            choice = data["choices"][0]
            message = choice["message"]
            if message.get("refusal") or choice.get("finish_reason") == "content_filter":
                raise RefusedError(
                    f"the server's model refuses: {message.get('refusal') or 'content filter'}"
                )
            content = message["content"]
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content)
            if not isinstance(content, str):
                raise TypeError
            logprobs = _tokens((choice.get("logprobs") or {}).get("content"))
            return Answer(content, logprobs, ended=True, finished=_finished(choice.get("finish_reason")))
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _nonsense() from error

    def read_line(self, line: str) -> Answer | None:
        """An event's data."""
        if not line.startswith("data:"):
            return None
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            return Answer("", ended=True)
        data = _object(text)
        if data.get("error"):
            raise RemoteError(f"the server failed: {str(data['error'])[:200]}")
        try:
            if not data["choices"]:
                return None  # the usage
            choice = data["choices"][0]
            logprobs = _tokens((choice.get("logprobs") or {}).get("content"))
            finished = _finished(choice.get("finish_reason"))
            return Answer(choice["delta"].get("content") or "", logprobs, finished=finished)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _nonsense() from error


class OllamaProtocol:
    """``/api/chat``."""

    path = "/api/chat"

    def body(self, question: Question) -> dict[str, Any]:
        """Ollama streams unless it is told not to."""
        options, photo = question.options, base64.b64encode(question.jpeg).decode()
        search: dict[str, Any] = {
            "num_predict": options.max_length,
            "temperature": options.temperature if options.do_sample else 0,
        }
        if options.do_sample:
            search |= {"top_p": options.top_p, "top_k": options.top_k}
        if options.stop:
            search["stop"] = list(options.stop)
        if question.seed is not None:
            search["seed"] = question.seed
        if options.repetition_penalty != 1:
            search["repeat_penalty"] = options.repetition_penalty
        message = {"role": "user", "content": question.instruction, "images": [photo]}
        form = {"format": json.loads(options.json_schema)} if options.json_schema else {}
        return {
            **form,
            "model": question.model,
            "messages": [message],
            "stream": question.stream,
            "think": False,
            "logprobs": True,
            "options": search,
        }

    def read(self, data: dict[str, Any]) -> Answer:
        """A whole answer and a piece of one are alike."""
        if data.get("error"):
            raise RemoteError(f"the server failed: {str(data['error'])[:200]}")
        try:
            content = data["message"]["content"]
            if not isinstance(content, str):
                raise TypeError
            logprobs, finished = _tokens(data.get("logprobs")), _finished(data.get("done_reason"))
            return Answer(content, logprobs, ended=bool(data.get("done")), finished=finished)
        except (KeyError, TypeError) as error:
            raise _nonsense() from error

    def read_line(self, line: str) -> Answer | None:
        """A JSON object a line."""
        return self.read(_object(line)) if line.strip() else None


def answer_text(text: str, *, is_json: bool = False) -> str:
    """The caption in an answer, without what a model thought aloud before it; a text is put on one line."""
    text = text.lstrip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].lstrip()
    return text.rstrip() if is_json else " ".join(text.split())


def written_answer(answer: Answer, *, is_json: bool = False) -> WrittenCaption:
    """An answer as a caption.

    Raises:
        RemoteError: there is no text in it, or no JSON where that was asked for and nothing cut it off.
    """
    text = answer_text(answer.text, is_json=is_json)
    if not text:
        raise RemoteError("the server's model answers with nothing")
    if is_json:
        if answer.finished is not False:
            _object(text)
        known = None if answer.tokens is None else [logprob for _, logprob in answer.tokens]
        return WrittenCaption(text, known, (), finished=answer.finished)
    if answer.tokens is None:
        words = [TokenSpan(word, 0, 0) for word in text.split()]
        return WrittenCaption(text, None, words, finished=answer.finished)
    logprobs = [logprob for _, logprob in answer.tokens]
    words = _spans(text, [piece for piece, _ in answer.tokens])
    return WrittenCaption(text, logprobs, words, finished=answer.finished)


def _spans(text: str, pieces: Sequence[bytes]) -> list[TokenSpan]:
    """The words with their tokens; those that do not stand in the tokens' bytes in order have none."""
    whole, ends, total = b"".join(pieces), list[int](), 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    after = max(0, whole.find(b"</think>"))
    spans = []
    for word in text.split():
        match = re.compile(re.escape(word.encode())).search(whole, after)
        if match is None:
            spans.append(TokenSpan(word, 0, 0))
            continue
        first = next(index for index, end in enumerate(ends) if end > match.start())
        last = next(index for index, end in enumerate(ends) if end >= match.end())
        spans.append(TokenSpan(word, first, last + 1))
        after = match.end()
    return spans


def _tokens(items: Any) -> tuple[tuple[bytes, float], ...] | None:
    """Tokens with log-probs, of the form that OpenAI and Ollama share; None where there are none."""
    if not items:
        return None
    found = []
    for item in items:
        data, logprob = item.get("bytes"), min(0.0, float(item["logprob"]))
        found.append((bytes(data) if data is not None else str(item["token"]).encode(), logprob))
    return tuple(found)


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's form of a schema; strict, so that it is followed, where OpenAI itself would take that."""
    if schema == {"type": "object"}:
        return {"type": "json_object"}
    named = {"name": "answer", "schema": schema, "strict": _may_be_strict(schema)}
    return {"type": "json_schema", "json_schema": named}


def _may_be_strict(schema: Any) -> bool:
    """Whether all objects of a schema need all their properties and have no others."""
    if isinstance(schema, list):
        return all(map(_may_be_strict, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    closed = schema.get("type") != "object" or (
        schema.get("additionalProperties") is False
        and set(schema.get("required", ())) == set(properties or ())
    )
    return closed and all(map(_may_be_strict, schema.values()))


def _finished(reason: Any) -> bool | None:
    """What a server's reason for the end of a text says; its words are those of both APIs."""
    return None if reason is None else reason != "length"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _nonsense() from error
    if not isinstance(found, dict):
        raise _nonsense()
    return found


def _nonsense() -> RemoteError:
    return RemoteError("the server's answer is not what its API says")
