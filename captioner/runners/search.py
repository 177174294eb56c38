"""The search of `transformers` under our rules: the same options, the same samples, one step at a time.

Its own methods choose the tokens of a beam search. In each row of any other search the choice is ours, handed
over as a distribution that leaves nothing else to choose.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from captioner.generation import DecodeRules, Hypothesis, SearchOptions
from captioner.logits import LogitsRules, perturb
from captioner.runners.base import IsWanted, check_wanted
from captioner.runners.json_answers import Held

__all__ = ["Task", "force", "search", "streams", "tokens_in_steps"]

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A batch to search captions of.

    Attributes:
        network: of `transformers`.
        inputs: what its ``generate`` takes.
        given: tokens in each row before the first generated one.
        options: of the search.
        rules: its token ids.
        eos_ids: the ids that end a caption; the first is that of ``rules``.
        stopped: whether a row of generated ids has come to one of the options' stop strings.
        is_wanted: asked before each token is chosen; where it is false, NotWantedError ends the search.
        held: keeps all rows to a JSON schema; None for any text.
    """

    network: Any
    inputs: dict[str, Any]
    given: int
    options: SearchOptions
    rules: DecodeRules
    eos_ids: tuple[int, ...]
    stopped: Callable[[list[int]], bool]
    is_wanted: IsWanted
    held: Held | None = None


def streams(options: SearchOptions) -> bool:
    """Whether a caption's tokens are certain as soon as they are chosen, and can be told."""
    return not options.alternatives and (options.do_sample or options.num_beams == 1)


def search(task: Task, *, streamer: Any = None) -> list[list[Hypothesis]]:
    """For each image its captions, best first."""
    options, rows = task.options, 1 + task.options.alternatives
    if options.do_sample or options.num_beams == 1:
        method: dict[str, Any] = {"do_sample": options.do_sample}
        if options.do_sample:
            method |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # the draw is ours
    else:
        method = {"num_beams": options.num_beams, "length_penalty": options.length_penalty}
        method["early_stopping"] = options.early_stopping or "never"
    if len(task.eos_ids) > 1 and options.min_length > 1:
        method["min_new_tokens"] = options.min_length - 1  # our rules know one end token
    out = _generate(task, _Obey(task), num_return_sequences=rows, streamer=streamer, **method)
    logprobs = task.network.compute_transition_scores(
        out.sequences,
        tuple(logits.float() for logits in out.logits),
        out.get("beam_indices"),
        normalize_logits=True,
    )
    pairs = zip(out.sequences[:, task.given :].tolist(), logprobs.tolist(), strict=True)
    found = [_hypothesis(task, *pair) for pair in pairs]
    images = [found[start : start + rows] for start in range(0, len(found), rows)]
    if options.do_sample:
        return [sorted(image, key=lambda hypothesis: -hypothesis.score) for image in images]
    return images


def force(task: Task, token_ids: Sequence[Sequence[int]]) -> None:
    """Let the network write these token ids, one row an image, step by step as in a search."""
    longest = max(map(len, token_ids))
    rows = torch.tensor([[*ids, *[task.rules.pad_id] * (longest - len(ids))] for ids in token_ids])

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        return _only(scores, rows.to(scores.device)[:, input_ids.shape[1] - task.given])

    _generate(task, choose, eos_token_id=[], max_new_tokens=longest, do_sample=False)


def tokens_in_steps(run: Callable[[Any], T]) -> Iterator[Tensor | T]:
    """The tokens that a search chooses, a step at a time, and then what it gives.

    ``generate`` tells them in the midst of its loop, so it runs in a thread of its own, which waits whenever
    nobody asks for more: at any moment only one of the two threads does anything.

    Args:
        run: given the streamer, does the search.
    """
    wanted, told = threading.Semaphore(0), queue.SimpleQueue[Tensor | _End]()
    gone = threading.Event()

    def work() -> None:
        wanted.acquire()
        if gone.is_set():
            return
        try:
            told.put(_End(result=run(_Teller(told, wanted, gone))))
        except BaseException as error:
            told.put(_End(error=error))

    threading.Thread(target=work, name="search", daemon=True).start()
    try:
        while True:
            wanted.release()
            item = told.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                yield item.result
                return
            yield item
    finally:
        gone.set()
        wanted.release()


@dataclass
class _End:
    result: Any = None
    error: BaseException | None = None


class _Gone(Exception):  # noqa: N818 - ends a search that nobody listens to
    pass


class _Teller:
    """What `transformers` calls a streamer: it is told the prompt and then each step's tokens."""

    def __init__(
        self, told: queue.SimpleQueue[Any], wanted: threading.Semaphore, gone: threading.Event
    ) -> None:
        self._told, self._wanted, self._gone = told, wanted, gone
        self._begun = False

    def put(self, value: Tensor) -> None:
        """A step's tokens ``(rows,)``; the first call has the prompt."""
        if self._begun:
            self._told.put(value)
            self._wanted.acquire()
            if self._gone.is_set():
                raise _Gone
        self._begun = True

    def end(self) -> None:
        """The search ends."""


class _Obey:
    """Our rules and our draws as a processor of logits ``(rows, V)`` after the token ids ``(rows, T)``."""

    def __init__(self, task: Task) -> None:
        device = task.network.device
        self._task, self._rows = task, 1 + task.options.alternatives
        self._rules = LogitsRules(task.options, task.rules, device)
        seed = task.options.seed
        self._generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_wanted(self._task.is_wanted)
        tokens, scores = input_ids[:, self._task.given :], scores.float().log_softmax(-1)
        if self._task.held is not None:
            scores = self._task.held(scores, tokens)
        scores = self._rules(scores[:, None], tokens[:, None])
        if not self._task.options.do_sample:
            return scores[:, 0]
        images = scores.view(-1, self._rows, scores.shape[-1])
        draw = perturb(images, self._task.options, self._generator).argmax(-1).flatten()
        return _only(scores[:, 0], draw)


def _only(scores: Tensor, token_ids: Tensor) -> Tensor:
    """Scores that leave one token a row to choose."""
    return torch.full_like(scores, -torch.inf).scatter_(1, token_ids[:, None], 0.0)


def _generate(
    task: Task, choose: Callable[[Tensor, Tensor], Tensor], *, streamer: Any = None, **method: Any
) -> Any:
    library: Any = import_module("transformers")
    rules = task.rules
    settings = {
        "max_new_tokens": task.options.max_length,
        "eos_token_id": list(task.eos_ids),
        "pad_token_id": rules.pad_id,
        "decoder_start_token_id": rules.prompt_ids[0],
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    return task.network.generate(
        **task.inputs,
        logits_processor=[choose],
        stopping_criteria=[lambda ids, scores: _stopped(task, ids)] if task.options.stop else None,
        generation_config=library.GenerationConfig(**{**settings, **method}),
        **({} if streamer is None else {"streamer": streamer}),
    )


def _stopped(task: Task, ids: Tensor) -> Tensor:
    found = [task.stopped(row) for row in ids[:, task.given :].tolist()]
    return torch.tensor(found, device=ids.device)


def _hypothesis(task: Task, ids: Sequence[int], logprobs: Sequence[float]) -> Hypothesis:
    """One returned row, cut after its end token or its stop string."""
    length = next((place + 1 for place, token in enumerate(ids) if token in task.eos_ids), len(ids))
    finished = length > 0 and ids[length - 1] in task.eos_ids
    if task.options.stop and task.stopped(list(ids[:length])):
        length = next(n for n in range(1, length + 1) if task.stopped(list(ids[:n])))
        finished = True
    score = sum(logprobs[:length]) / max(length, 1) ** task.options.length_penalty
    return Hypothesis(tuple(ids[:length]), tuple(logprobs[:length]), score, finished)
