"""What a monitoring system reads at ``/metrics``, in a registry of the application's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from captioner import Alternative, Caption, Captioner

__all__ = ["Metrics", "count_tokens"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def count_tokens(caption: Caption | Alternative) -> int:
    """How many tokens were generated; where that is not known, its words and an end."""
    return len(caption.caption.split()) + 1 if caption.tokens is None else caption.tokens


class Metrics:
    """Counters and gauges of one server; safe to use from several threads."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "captioner_http_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.latency = Histogram(
            "captioner_http_request_seconds",
            "From the request's head to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        gauge = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        self.accepted = gauge("captioner_accepted_images", "Photos of all requests being worked on")
        self.pending_bytes = gauge("captioner_pending_bytes", "Bodies of requests that are not answered yet")
        self.queue = gauge("captioner_queue_depth", "Decoded photos that wait for a batch")
        self.streams = gauge("captioner_streams", "Captions being streamed")
        self.device_memory = gauge("captioner_device_memory_bytes", "Memory that tensors take on a GPU")
        self.model_bytes = gauge(
            "captioner_model_bytes", "Memory of a model's weights; 0 while it is not loaded", ["model"]
        )
        self.loads = Counter(
            "captioner_model_loads", "Times that a model was loaded", ["model"], registry=registry
        )
        self.batch_size = Histogram(
            "captioner_batch_size", "Photos in a forward pass", ["model"], buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "captioner_batch_seconds", "Duration of a batch", ["model"], buckets=SECONDS, registry=registry
        )
        self.images = Counter(
            "captioner_images",
            "Photos: captioned, failed or dropped",
            ["outcome", "model"],
            registry=registry,
        )
        self.tokens = Counter("captioner_tokens", "Tokens of the best captions", ["model"], registry=registry)
        self.out_of_memory = Counter(
            "captioner_out_of_memory", "Batches that did not fit the device's memory", registry=registry
        )

    def expect(self, model: str) -> None:
        """Show a model's counters from the start."""
        for outcome in ("captioned", "failed", "dropped"):
            self.images.labels(outcome, model)
        for each in (self.tokens, self.batch_size, self.batch_seconds, self.loads, self.model_bytes):
            each.labels(model)

    def count(self, captions: Sequence[Caption], captioner: Captioner) -> None:
        """Count captions that were made, and look at the memory that it took."""
        device = captioner.device
        self.images.labels("captioned", captioner.name).inc(len(captions))
        self.tokens.labels(captioner.name).inc(sum(count_tokens(caption) for caption in captions))
        if device.type == "cuda":
            self.device_memory.set(torch.cuda.memory_allocated(device))
        elif device.type == "mps":
            self.device_memory.set(torch.mps.current_allocated_memory())

    def render(self) -> bytes:
        """All metrics in Prometheus's text format: those of all processes, where there are several."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
