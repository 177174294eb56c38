"""What went wrong with the hub, in one sentence that says what to do."""

from __future__ import annotations

import errno

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["is_unreachable", "why_not"]


def why_not(
    error: Exception, *, name: str, repository: str, revision: str, host: str, partly: bool, token: bool
) -> str:
    """Why a model does not come.

    Args:
        error: what the hub's client, its HTTP client or the operating system raised.
        name: of the model, as it was given.
        repository: ``owner/name``.
        revision: that was asked for.
        host: the hub's address.
        partly: whether something of it has come before.
        token: whether one was sent.
    """
    error = _cause(error)
    lacking = f"{name} is {'only partly' if partly else 'not'} in the hub's cache"
    if isinstance(error, HFValidationError):
        return f"{name} is no name that a model of the hub can have: give owner/name"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{lacking}, and HF_HUB_OFFLINE forbids to fetch it: run `captioner download {name}` where there "
            "is a network, or unset HF_HUB_OFFLINE"
        )
    if isinstance(error, HfHubHTTPError):
        return _refused(error, name, repository, revision, host, token)
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy on the way to {host} refuses: {_first_line(error)}; check HTTPS_PROXY"
    if isinstance(error, httpx2.ConnectError):
        return (
            f"{lacking}, and {host} cannot be reached ({_first_line(error)}): "
            "check the network and HF_ENDPOINT"
        )
    if isinstance(error, httpx2.TransportError):
        return (
            f"the connection to {host} broke or stood still ({_first_line(error)}): run the same command "
            "again; it goes on with what has come"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: make room for {name}, or set HF_HOME to another disk, and run it again"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} cannot be written into the hub's cache: {error}"
    if isinstance(error, OSError):  # of the client: a file that ended early, or an answer without headers
        return f"{name} did not come whole from {host}: {_first_line(error)}"
    if isinstance(error, ValueError | KeyError | TypeError):  # an answer of another form than the hub's
        return f"{host} does not answer as a Hugging Face hub does ({_first_line(error)}): check HF_ENDPOINT"
    return f"{name} does not come from {host}: {_first_line(error)}"


def is_unreachable(error: Exception) -> bool:
    """Whether there is no way to the hub now, or none is allowed."""
    error = _cause(error)
    down = isinstance(error, HfHubHTTPError) and error.response.status_code >= 500
    return down or isinstance(error, OfflineModeIsEnabled | httpx2.TransportError)


def _refused(error: HfHubHTTPError, name: str, repository: str, revision: str, host: str, token: bool) -> str:
    """Of an answer that is a refusal."""
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        then = "wait until it is granted" if token else "set HF_TOKEN to a token of the account that did"
        return f"{name} is gated: accept its conditions at {host}/{repository}, then {then}"
    if isinstance(error, DisabledRepoError):
        return f"{host} has disabled {repository}: choose another model"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision} on {host}"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{repository} lacks a file that {host} lists: try again later"
    if status == 401 and token and not isinstance(error, RepositoryNotFoundError):
        return f"{host} does not accept the token in HF_TOKEN: make a new one at {host}/settings/tokens"
    if status == 404 and not error.response.headers.get("X-Error-Code"):
        return f"{host} has no model {repository}, or it is no hub: check the name and HF_ENDPOINT"
    if status in (401, 404) or isinstance(error, RepositoryNotFoundError):
        then = "which the account of HF_TOKEN may not see" if token else "for which HF_TOKEN must be set"
        return f"{host} has no model {repository}, or it is a private one, {then}"
    if status == 403:
        then = "the token in HF_TOKEN needs" if token else "set HF_TOKEN to a token that has"
        return f"{host} refuses {repository}: {then} the right to read it"
    if status == 429:
        more = "" if token else ", or set HF_TOKEN, with which the hub allows more"
        return f"{host} says that too many requests came from here: wait some minutes{more}"
    if status >= 500:
        return f"{host} is out of order (status {status}): try again later; what has come is kept"
    return f"{host} does not give {repository} (status {status}): {_first_line(error)}"


def _cause(error: Exception) -> Exception:
    """What the client's own "not in the cache" comes from."""
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
