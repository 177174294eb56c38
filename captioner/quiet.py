"""`transformers` without what it says while it loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet_transformers"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the report and the bar of loading, which name parts that a captioner does not have."""
    from transformers.utils import logging as theirs

    calls: Any = theirs  # some of which have no types
    level = calls.get_verbosity()
    kernels = logging.getLogger("bitsandbytes")  # which names some that it can do without
    before = kernels.level
    kernels.setLevel(logging.ERROR)
    calls.set_verbosity_error()
    calls.disable_progress_bar()
    try:
        yield
    finally:
        kernels.setLevel(before)
        calls.set_verbosity(level)
        calls.enable_progress_bar()
