"""Models of the Hugging Face hub: what they are called, and how they come here."""

from captioner.hub.catalogue import CATALOGUE, KnownModel, known_model
from captioner.hub.fetch import Hub, fetch, is_hub_name, is_local, record_of
from captioner.hub.pickles import with_safetensors

__all__ = [
    "CATALOGUE",
    "Hub",
    "KnownModel",
    "fetch",
    "is_hub_name",
    "is_local",
    "known_model",
    "record_of",
    "with_safetensors",
]
