"""What a record was made with, and what of that is another thing now: the model's weights and the options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from captioner.hub import is_hub_name, is_local, record_of
from captioner.load import model_directory
from captioner.options import SearchOptions

__all__ = ["made_with", "what_changed"]

_DEFAULTS = SearchOptions().to_dict()


def made_with(model: str, options: SearchOptions) -> dict[str, Any]:
    """What decides on a caption, as records have it: a digest of the model, and options that are not usual.

    Args:
        model: as :func:`captioner.load` takes it.
        options: of the search; those that every model has that sets none are left out.
    """
    weights = _digest(model)
    unusual = {name: value for name, value in options.to_dict().items() if value != _DEFAULTS[name]}
    return {"weights": weights, **unusual} if weights else unusual


def _digest(model: str) -> str:
    """The start of the SHA-256 of a checkpoint directory's files, or of the commit of a hub's model that was
    downloaded; empty for what is neither.
    """
    digest = hashlib.sha256()
    directory = model_directory(model)
    if not is_local(directory) and is_hub_name(model):
        record = record_of(model)
        return record.commit[:16] if record else ""
    files = sorted(path for path in directory.glob("*") if path.suffix in (".json", ".safetensors", ".bin"))
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if files else ""


@lru_cache(maxsize=256)  # a log has few origins
def what_changed(before: str, now: str) -> str:
    """In which way records differ from those that would be made now; empty where they do not.

    Args:
        before: of the record, its ``model`` and ``made_with`` in one object, as JSON.
        now: likewise.
    """
    old, new = json.loads(before), json.loads(now)
    changes = [_change(name, old, new) for name in _DEFAULTS]
    names = [old.pop("model", None), new.pop("model", None)]
    weights = [old.get("weights"), new.get("weights")]
    if all(weights):
        changes.append("other weights" if weights[0] != weights[1] else "")
    elif names[0] != names[1]:
        changes.append(f"model {names[0]}, now {names[1]}")
    return "; ".join(filter(None, changes))


def _change(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, now = old.get(name, _DEFAULTS[name]), new.get(name, _DEFAULTS[name])
    enough = before >= now if name in ("alternatives", "attention") else before == now
    return "" if enough else f"{name} {json.dumps(before)}, now {json.dumps(now)}"
