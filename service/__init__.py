"""Captions over HTTP: an ASGI application around the library, which knows nothing of it."""
