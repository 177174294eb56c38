"""Checkpoints of other projects in our format."""

from captioner.convert.hugging_face import convert, is_hugging_face, read_hugging_face
from captioner.convert.tensors import is_bare_vit, their_tensors

__all__ = ["convert", "is_bare_vit", "is_hugging_face", "read_hugging_face", "their_tensors"]
