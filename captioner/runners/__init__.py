"""What runs a model: prepared photos and options in, captions as their tokens out.

Each kind of model has a runner; :class:`~captioner.captioner.Captioner` holds one and asks no further.
:class:`~captioner.runners.remote.RemoteRunner` is imported by itself, since it brings an HTTP client with it.
"""

from captioner.runners.address import Address, is_address
from captioner.runners.base import Lacks, PreparedImage, Progress, Runner, WrittenCaption
from captioner.runners.ours import CheckpointRunner
from captioner.runners.sequence import is_sequence_model, read_sequence_model
from captioner.runners.vision_language import is_vision_language, read_vision_language

__all__ = [
    "Address",
    "CheckpointRunner",
    "Lacks",
    "PreparedImage",
    "Progress",
    "Runner",
    "WrittenCaption",
    "is_address",
    "is_sequence_model",
    "is_vision_language",
    "read_sequence_model",
    "read_vision_language",
]
