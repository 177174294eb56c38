"""What a checkpoint's configuration says of it, in our terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captioner.errors import CheckpointError
from captioner.linear import Activation
from captioner.model import ModelConfig

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Shape", "activation", "library_config", "one_id", "special_ids"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All of a checkpoint but its weights and its tokenizer.

    Attributes:
        model: the network.
        names: our tensors' names with theirs.
        start_ids: token ids that every caption starts with.
        eos_id: ends a caption.
        pad_id: fills captions up.
        image: what the image processor does where its own file does not say.
        counted_start: see :class:`~captioner.tokenizer.TokenizerConfig`.
        forced_end: likewise.
        questions: by the name of each detail, the text that its encoder is asked.
        generation: settings of generation where its own file has none.
        renamed: the tensors on disk by the names of `transformers`.
    """

    model: ModelConfig
    names: Mapping[str, str]
    start_ids: tuple[int, ...]
    eos_id: int
    pad_id: int
    image: Mapping[str, Any]
    counted_start: int = 0
    forced_end: int | None = None
    questions: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


def activation(name: str, where: str) -> Activation:
    """Our name of an activation. Raises CheckpointError where the network ``where`` has another one."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"its {where}'s activation is {name!r}")
    return ACTIVATIONS[name]


def one_id(name: str, *places: Any) -> int | None:
    """The token id of that name in the first place that has it. Raises CheckpointError for several."""
    ids = next((found for found in places if found is not None), None)
    if isinstance(ids, list | tuple):
        if len(ids) != 1:
            raise CheckpointError(f"it has several tokens for {name}: {list(ids)}")
        ids = ids[0]
    return None if ids is None else int(ids)


def special_ids(token_id: Callable[[str], int | None]) -> tuple[int, int, int]:
    """The tokens that start, end and fill up captions; without one of its own the end token fills up.

    Args:
        token_id: finds what a checkpoint calls, for example, ``eos_token_id``.

    Raises:
        CheckpointError: nothing starts or nothing ends a caption.
    """
    start, eos, pad = (token_id(f"{name}_token_id") for name in ("decoder_start", "eos", "pad"))
    start = token_id("bos_token_id") if start is None else start
    if start is None or eos is None:
        raise CheckpointError("it has no decoder_start_token_id or no eos_token_id")
    return start, eos, eos if pad is None else pad


def library_config(config: Any) -> dict[str, Any]:
    """A configuration of `transformers` as options of :class:`~captioner.vision.TransformersBackbone`."""
    told = ("_name_or_path", "architectures", "dtype", "transformers_version")
    return {name: value for name, value in config.to_dict().items() if name not in told}
